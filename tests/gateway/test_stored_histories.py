"""Histories stored at the provider: sized by the usage of their last answer, per project."""

from __future__ import annotations

import json
from typing import Any

from gateway.pipeline.call import Call, Principal
from gateway.pipeline.stored_histories import StoredHistories
from gateway.wire.protocols import PROTOCOLS
from policies.tokens import PromptCount

RESPONSES = PROTOCOLS["/v1/responses"]
COUNT = PromptCount(10, 4_020, exact=False)


def call_of(project: str = "p", **fields: Any) -> Call:
    request = RESPONSES.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())
    return Call("c", RESPONSES, Principal("", "local", project), request)


def remember(histories: StoredHistories, answer_id: str, tokens: int, conversation: str | None = None) -> None:
    answer: dict[str, Any] = {"id": answer_id, "usage": {"input_tokens": tokens - 5, "output_tokens": 5}}
    usage = RESPONSES.usage(answer | ({"conversation": {"id": conversation}} if conversation else {}))
    assert usage is not None
    histories.remember(call_of(), usage)


def test_size_of_a_stored_history_is_found_by_answer_or_conversation_id() -> None:
    histories = StoredHistories()
    remember(histories, "resp_1", 6_000, "conv_1")
    remember(histories, "resp_2", 9_000, "conv_1")
    for fields, tokens in (
        ({"previous_response_id": "resp_1"}, 6_010),
        ({"conversation": "conv_1"}, 9_010),
        ({"conversation": {"id": "conv_1"}}, 9_010),
        ({"previous_response_id": "resp_9"}, 10),
        ({"conversation": ["conv_1"]}, 10),
        ({}, 10),
    ):
        assert histories.with_stored_history(call_of(**fields), COUNT).tokens == tokens, fields
    assert (
        histories.with_stored_history(call_of(previous_response_id="resp_1"), COUNT).reserve_tokens
        == 4_020 + 6_060 - 4_000
    )


def test_too_long_id_is_not_remembered() -> None:
    """Ids come from the provider, and tens of thousands are remembered."""
    histories = StoredHistories()
    remember(histories, "r" * 10_000, 6_000)
    assert histories.with_stored_history(call_of(previous_response_id="r" * 10_000), COUNT) == COUNT


def test_histories_are_separate_per_project() -> None:
    histories = StoredHistories()
    remember(histories, "resp_1", 6_000)
    assert histories.with_stored_history(call_of("other", previous_response_id="resp_1"), COUNT) == COUNT
