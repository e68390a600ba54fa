"""Legacy completions: prompts and choices multiply, and the default output cap is 16."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import BadRequest, StreamBroken
from gateway.wire.completions import CompletionsProtocol
from tests.gateway.wire_streams import data_events, events_of, parsed, relay_of, relayed

COMPLETIONS = CompletionsProtocol()


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3], [4]]}, 3),
        ({"prompt": None}, 1),
        ({"prompt": "a", "n": 4}, 4),
        ({"prompt": ["a", "b"], "n": 2, "best_of": 5}, 10),
        ({"prompt": [1] * 5000}, 1),
    ],
)
def test_choices_are_prompts_times_the_larger_of_n_and_best_of(fields: dict[str, Any], choices: int) -> None:
    assert parsed("completions", **fields).choices == choices


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"n": "2"}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stream": "x"}, "stream"),
    ],
)
def test_invalid_request_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parsed("completions", **fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("own", "output_tokens", "sent"),
    [(None, None, None), (None, 500, 16), (None, 9, 9), (100, 50, 50), (10, 50, 10), (0, 50, 0)],
)
def test_output_cap_is_never_raised_and_defaults_to_16(
    own: int | None, output_tokens: int | None, sent: int | None
) -> None:
    request = parsed("completions", max_tokens=own)
    assert request.output_tokens_max == (16 if own is None else own)
    assert COMPLETIONS.upstream_body(request, output_tokens, stream=False).get("max_tokens") == sent


def test_usage_is_requested_for_a_stream() -> None:
    sent = COMPLETIONS.upstream_body(parsed("completions", stream=True), None, stream=True)
    assert sent["stream_options"] == {"include_usage": True}


def test_stream_is_finished_once_all_choices_ended_and_a_cut_ends_the_rest() -> None:
    relay, _ = relay_of("completions", prompt=["a", "b"], n=2)
    for index in (0, 3):
        end = {"index": index, "text": "x", "finish_reason": "stop"}
        relayed(relay, data_events({"id": "cmpl-9", "object": "text_completion", "choices": [end]}))
    assert not relay.is_finished
    relay.feed(b"")
    ends = events_of(relay.cut())
    assert [(event["id"], event["choices"][0]["index"], event["choices"][0]["text"]) for event in ends] == [
        ("cmpl-9", 1, ""),
        ("cmpl-9", 2, ""),
    ]
    assert relay.is_finished


def test_logprobs_and_choices_are_assembled() -> None:
    stream = data_events(
        {"id": "x", "choices": [{"index": 1, "text": "b", "logprobs": {"tokens": ["b"], "text_offset": [0]}}]},
        {"id": "x", "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]},
        {"id": "x", "choices": [{"index": 1, "text": "c", "logprobs": {"tokens": ["c"], "text_offset": [1]}}]},
        {"id": "x", "choices": [{"index": 1, "text": "", "finish_reason": "length"}]},
    )
    answer = COMPLETIONS.assemble(b"".join(stream))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"},
        {
            "index": 1,
            "text": "bc",
            "logprobs": {"tokens": ["b", "c"], "text_offset": [0, 1]},
            "finish_reason": "length",
        },
    ]
    assert COMPLETIONS.output_text(answer) == "a\nbc"


@pytest.mark.parametrize("event", [{"choices": ["x"]}, {"choices": [{"index": -2}]}, {"error": {"message": "no"}}])
def test_invalid_events_break_the_stream(event: dict[str, Any]) -> None:
    with pytest.raises(StreamBroken):
        COMPLETIONS.assemble(b"".join(data_events(event)))
