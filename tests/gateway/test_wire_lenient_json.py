"""JSON that orjson refuses."""

from __future__ import annotations

import json

import pytest

from gateway.wire import lenient_json


@pytest.mark.parametrize("text", ['{"a":"\\ud83d"}', '{"a":NaN}', '{"a":1e999}'])
def test_json_that_orjson_refuses_is_read_and_written(text: str) -> None:
    value = lenient_json.loads(text.encode())
    assert repr(json.loads(lenient_json.dumps(value))) in (repr(value), "{'a': None}"), (
        "orjson writes null for what is no number"
    )


@pytest.mark.parametrize("data", [b"{", b'{"a":"\xff"}', b"[" * 100_000])
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        lenient_json.loads(data)


def test_halves_of_an_emoji_are_written_as_one() -> None:
    assert json.loads(lenient_json.dumps("\ud83d" + "\ude00")) == "\U0001f600"
