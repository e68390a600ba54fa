"""Bodies that must be refused: catalogue 72 to 77."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.errors import BadRequest
from gateway.wire.body import ACCOUNTED_KEYS, DENIED_KEYS, boolean, parse_object, strip_tags, text, whole_number


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b'"text"',
        b"1",
        b"null",
        b"not json",
        b"\xef\xbb\xbf{}",
        '{"model":"m"}'.encode("utf-16"),
        b'{"temperature":NaN}',
        b'{"temperature":Infinity}',
        b'{"temperature":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'{"a":"\x00"}',
        b'{"a":1,}',
    ],
    ids=range(20),
)
def test_body_that_is_no_json_object_is_refused_quickly(raw: bytes) -> None:
    begun_s = time.perf_counter()
    with pytest.raises(BadRequest) as refused:
        parse_object(raw)
    assert time.perf_counter() - begun_s < 0.5
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("key", sorted(ACCOUNTED_KEYS))
def test_duplicate_of_a_key_that_affects_the_price_is_refused(key: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_object(f'{{"{key}":1,"x":2,"{key}":3}}'.encode())
    assert (refused.value.code, refused.value.param) == ("duplicate_key", key)


def test_same_key_in_a_nested_object_is_no_duplicate() -> None:
    body = parse_object(
        b'{"model":"m","tools":[{"parameters":{"model":{},"stream":1}}],"note":"\\"model\\"","stream":true}'
    )
    assert body["model"] == "m"


@pytest.mark.parametrize(
    ("raw", "is_refused"),
    [
        (b'{"model": "model", "messages": [{"content": "model"}]}', False),
        (b'{"model": "m", "tools": [{"model": 1, "n": {"model": 2}}]}', False),
        (b'{"model": "m", "messages": [{"content": "say \\"model\\": twice, \\"model\\":"}]}', False),
        (b'{"model": "m", "tools": [{"model": 1}], "model" : "n"}', True),
        (
            b'{"tools": [{"model": 1, "model": 2}], "model": "m"}',
            False,
        ),  # a duplicate in a nested object is left to the provider
        (b'{"model": "m", "tools": [{"model": 1, "model": 2}], "model": "n"}', True),
        (b'{"model": "m", "mod\\u0065l": "n"}', True),
    ],
)
def test_duplicates_are_refused_only_at_the_top_level(raw: bytes, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(BadRequest, match="model"):
            parse_object(raw)
    else:
        assert parse_object(raw)["model"]


def test_duplicate_after_deep_nesting_is_refused() -> None:
    raw = b'{"a":' + b"[" * 1000 + b"]" * 1000 + b',"model":"a","model":"b"}'
    with pytest.raises(BadRequest):
        parse_object(raw)


@pytest.mark.parametrize("key", sorted(DENIED_KEYS))
def test_field_that_chooses_the_upstream_is_refused(key: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_object(f'{{"model":"m","{key}":"x"}}'.encode())
    assert (refused.value.code, refused.value.param) == ("forbidden_field", key)


def test_unknown_fields_and_unusual_text_pass() -> None:
    raw = '{"model":"m","brand_new":{"a":[1,2.5,null]},"t":"\\u0000 \\u202e עברית 👨‍👩‍👧 Z̷a̸l̵g̶o̷"}'.encode()
    body = parse_object(raw)
    assert body["brand_new"] == {"a": [1, 2.5, None]}
    assert body["t"].startswith("\x00 \u202e")


@pytest.mark.parametrize("value", [True, False, 1.0, "100", -1, 0, 10**30, [], {}, 2**31, 1e3])
def test_whole_number_refuses_other_types_and_ranges(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        whole_number({"max_tokens": value}, "max_tokens", 1)
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize(("value", "expected"), [(None, None), (1, 1), (2**31 - 1, 2**31 - 1)])
def test_whole_number_in_range_is_accepted(value: int | None, expected: int | None) -> None:
    assert whole_number({"n": value}, "n", 1) == expected


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}])
def test_boolean_refuses_other_types(value: object) -> None:
    with pytest.raises(BadRequest):
        boolean({"stream": value}, "stream")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "missing_field"),
        ("", "invalid_value"),
        (7, "invalid_value"),
        (["m"], "invalid_value"),
        ("m" * 513, "invalid_value"),
    ],
)
def test_text_refuses_missing_empty_or_too_long_values(value: object, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        text({"model": value}, "model")
    assert (refused.value.code, refused.value.param) == (code, "model")


TAGS = {"workflow_id": "w", "run_id": "r", "step": "s", "agent": "a"}


@pytest.mark.parametrize(
    ("metadata", "left"),
    [
        (TAGS, None),
        ({**TAGS, "team": "x"}, {"team": "x"}),
        ({"step": "s", "user_id": "u"}, {"user_id": "u"}),
        ("odd", "odd"),
    ],
)
def test_strip_tags_removes_tags_from_metadata(metadata: Any, left: Any) -> None:
    body = {"model": "m", "metadata": metadata}
    strip_tags(body)
    assert body == ({"model": "m"} if left is None else {"model": "m", "metadata": left})
