"""What makes two turns of an agent the same, in each protocol's form."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.loop_detection import RepeatCount, count_repeat, is_conversation, last_tool_turn

ASKED = {"role": "user", "content": "what is it?"}


def chat(call_id: str, arguments: str, result: Any, name: str = "look") -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "messages": [
            ASKED,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": result},
        ]
    }


def messages(call_id: str, arguments: Any, result: Any, *beside: Any) -> dict[str, Any]:
    return {
        "messages": [
            ASKED,
            {"role": "assistant", "content": [{"type": "tool_use", "id": call_id, "name": "look", "input": arguments}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call_id, "content": result}, *beside]},
        ]
    }


def responses(call_id: str, arguments: str, output: Any) -> dict[str, Any]:
    return {
        "input": [
            ASKED,
            {"type": "function_call", "call_id": call_id, "name": "look", "arguments": arguments},
            {"type": "reasoning", "summary": []},
            {"type": "function_call_output", "call_id": call_id, "output": output},
        ]
    }


@pytest.mark.parametrize("form", [chat, messages, responses])
def test_turn_identity_ignores_call_ids_and_includes_everything_else(form: Any) -> None:
    turn = last_tool_turn(form("call_1", '{"q": 1}', "nothing"))
    assert turn is not None
    assert last_tool_turn(form("call_2", '{"q": 1}', "nothing")) == turn
    assert last_tool_turn(form("call_2", '{"q": 2}', "nothing")) != turn
    assert last_tool_turn(form("call_2", '{"q": 1}', "something")) != turn


def test_parallel_calls_form_one_turn_once_all_results_are_present() -> None:
    body = chat("a", "{}", "1")
    body["messages"][1]["tool_calls"].append({"id": "b", "function": {"name": "other", "arguments": "{}"}})
    assert last_tool_turn(body) is None, "the result of one call is missing"
    body["messages"].append({"role": "tool", "tool_call_id": "b", "content": "2"})
    assert last_tool_turn(body) == ("look", "{}", "1", "other", "{}", "2")
    body["messages"][2], body["messages"][3] = body["messages"][3], body["messages"][2]
    assert last_tool_turn(body) == ("look", "{}", "1", "other", "{}", "2"), "results may come in any order"


def test_user_text_beside_a_tool_result_makes_a_different_turn() -> None:
    alone, with_words = messages("a", {}, "1"), messages("a", {}, "1", {"type": "text", "text": "try again"})
    assert last_tool_turn(alone) != last_tool_turn(with_words)


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        ({"messages": [ASKED]}, False),
        ({"input": "a question"}, False),
        ({"prompt": "once upon"}, False),
        ({"messages": []}, False),
        ({"messages": [ASKED], "tools": [{"type": "function"}]}, True),
        ({"messages": [ASKED], "tools": []}, False),
        ({"messages": [ASKED, {"role": "assistant", "content": "a"}, ASKED]}, True),
        ({"input": [ASKED, {"type": "function_call"}]}, True),
        ({"input": "and now?", "previous_response_id": "resp_1"}, True),
    ],
)
def test_conversation_has_tools_or_earlier_turns(body: dict[str, Any], counts: bool) -> None:
    assert is_conversation(body) is counts


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["no object"],
        [{"role": "tool"}],
        ["x", {"role": "tool", "content": "a"}],
        [{"role": "assistant", "tool_calls": "none"}, {"role": "tool", "content": "a"}],
        [{"role": "assistant", "tool_calls": [None]}, {"role": "tool", "content": "a"}],
        [{"role": "user", "content": [None, 1]}],
        [{"role": "user", "content": [{"type": "tool_result"}]}],
        [{"type": "function_call_output"}],
    ],
)
def test_missing_or_malformed_tool_turn_is_none(messages: list[Any]) -> None:
    assert last_tool_turn({"messages": messages}) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "id"]), inner)
    ),
    max_leaves=10,
)


@given(st.fixed_dictionaries({"messages": st.lists(json_values, max_size=4)}), st.sampled_from(["tool", "user"]))
def test_any_json_body_is_handled_without_error(body: dict[str, Any], role: str) -> None:
    body["messages"].append({"role": role, "content": body["messages"][:1]})
    last_tool_turn(body)
    is_conversation(body)


def test_first_repeat_is_assumed_identical_and_later_ones_are_compared() -> None:
    first_repeat = count_repeat(RepeatCount(), 7)
    assert first_repeat == RepeatCount(2, 7)
    assert count_repeat(first_repeat, 7) == RepeatCount(3, 7)
    assert count_repeat(first_repeat, 8) == RepeatCount(1, 8), "the hashes differ, so it is no repeat"
