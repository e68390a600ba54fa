"""Bodies that must not get in: catalogue 72 to 77."""

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
def test_what_is_no_json_object_is_refused_at_once(raw: bytes) -> None:
    begun_s = time.perf_counter()
    with pytest.raises(BadRequest) as refused:
        parse_object(raw)
    assert time.perf_counter() - begun_s < 0.5
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("key", sorted(ACCOUNTED_KEYS))
def test_a_key_that_money_depends_on_may_stand_only_once(key: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_object(f'{{"{key}":1,"x":2,"{key}":3}}'.encode())
    assert (refused.value.code, refused.value.param) == ("duplicate_key", key)


def test_the_same_word_deeper_down_is_no_duplicate() -> None:
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
        (b'{"tools": [{"model": 1, "model": 2}], "model": "m"}', False),  # twice, and not ours to judge
        (b'{"model": "m", "tools": [{"model": 1, "model": 2}], "model": "n"}', True),
        (b'{"model": "m", "mod\\u0065l": "n"}', True),
    ],
)
def test_a_doubled_name_is_told_from_one_that_also_stands_elsewhere(raw: bytes, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(BadRequest, match="model"):
            parse_object(raw)
    else:
        assert parse_object(raw)["model"]


def test_a_duplicate_behind_deep_nesting_is_refused_and_not_an_error_of_ours() -> None:
    raw = b'{"a":' + b"[" * 1000 + b"]" * 1000 + b',"model":"a","model":"b"}'
    with pytest.raises(BadRequest):
        parse_object(raw)


@pytest.mark.parametrize("key", sorted(DENIED_KEYS))
def test_no_field_chooses_where_a_call_goes(key: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_object(f'{{"model":"m","{key}":"x"}}'.encode())
    assert (refused.value.code, refused.value.param) == ("forbidden_field", key)


def test_unknown_fields_and_odd_texts_pass() -> None:
    raw = '{"model":"m","brand_new":{"a":[1,2.5,null]},"t":"\\u0000 \\u202e עברית 👨‍👩‍👧 Z̷a̸l̵g̶o̷"}'.encode()
    body = parse_object(raw)
    assert body["brand_new"] == {"a": [1, 2.5, None]}
    assert body["t"].startswith("\x00 \u202e")


@pytest.mark.parametrize("value", [True, False, 1.0, "100", -1, 0, 10**30, [], {}, 2**31, 1e3])
def test_a_whole_number_is_nothing_else(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        whole_number({"max_tokens": value}, "max_tokens", 1)
    assert refused.value.param == "max_tokens"


@pytest.mark.parametrize(("value", "expected"), [(None, None), (1, 1), (2**31 - 1, 2**31 - 1)])
def test_a_whole_number_in_range(value: int | None, expected: int | None) -> None:
    assert whole_number({"n": value}, "n", 1) == expected


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}])
def test_a_boolean_is_nothing_else(value: object) -> None:
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
def test_a_text_that_is_none(value: object, code: str) -> None:
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
def test_tags_are_taken_out_of_the_metadata_of_a_tagged_call(metadata: Any, left: Any) -> None:
    body = {"model": "m", "metadata": metadata}
    strip_tags(body)
    assert body == ({"model": "m"} if left is None else {"model": "m", "metadata": left})
