"""Loop detection: an agent that sends the same request again, or calls the same tools with the same results.

Only conversations count. A lone prompt that is sent repeatedly is an evaluation, a sample or a load test, and its budget ends
it; an agent with tools or earlier answers that repeats itself to the letter makes no progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from policies.values import value_class

# An earlier answer precedes the last question or the results of its tool calls, so looking further back is unnecessary.
_TURNS_CHECKED: Final = 4


@value_class
class RepeatCount:
    """How often one thing was seen. `fingerprint` is a closer hash that tells it from others with the same key; None: not computed yet."""

    count: int = 1
    fingerprint: int | None = None


def count_repeat(previous: RepeatCount, fingerprint: int) -> RepeatCount:
    """One more occurrence, whose closer hash is `fingerprint`. The first occurrence has none, and is assumed to be the same; a
    later one that differs restarts the count."""
    if previous.fingerprint is None or previous.fingerprint == fingerprint:
        return RepeatCount(previous.count + 1, fingerprint)
    return RepeatCount(1, fingerprint)


def is_conversation(body: Mapping[str, Any]) -> bool:
    """Whether a request offers tools or follows an earlier answer, in any protocol."""
    if body.get("tools") or body.get("functions") or body.get("previous_response_id"):
        return True
    turns = body.get("messages") or body.get("input")
    return isinstance(turns, list) and any(_is_model_turn(turn) for turn in turns[-_TURNS_CHECKED:])


def last_tool_turn(body: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The last tool calls and their results, if the request ends with them: name, arguments and result of each, without the
    ids, which differ every time. None: the request ends with something else, or lacks the calls themselves."""
    turns = body.get("messages") or body.get("input")
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return None
    last = turns[-1]
    if last.get("role") == "tool":
        return _chat_turn(turns)
    if last.get("type") == "function_call_output":
        return _responses_turn(turns)
    if last.get("role") == "user" and isinstance(last.get("content"), list):
        return _messages_turn(turns)
    return None


def _is_model_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and (turn.get("role") in ("assistant", "tool") or turn.get("type") == "function_call")


def _chat_turn(turns: Sequence[Any]) -> tuple[str, ...] | None:
    results: dict[Any, str] = {}
    for turn in reversed(turns):
        if not isinstance(turn, dict):
            return None
        if turn.get("role") != "tool":
            calls = turn.get("tool_calls")
            return (
                _calls_with_results([_chat_call(call) for call in calls], results) if isinstance(calls, list) else None
            )
        results[_text(turn.get("tool_call_id"))] = _text(turn.get("content"))
    return None


def _chat_call(call: Any) -> tuple[str, str, str]:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return "", "", ""
    function = call["function"]
    return _text(call.get("id")), _text(function.get("name")), _text(function.get("arguments"))


def _messages_turn(turns: Sequence[Any]) -> tuple[str, ...] | None:
    results: dict[Any, str] = {}
    other_parts: list[str] = []
    for part in turns[-1]["content"]:
        if isinstance(part, dict) and part.get("type") == "tool_result":
            results[_text(part.get("tool_use_id"))] = _text(part.get("content"))
        else:
            other_parts.append(_text(part))
    assistant_turn = turns[-2] if len(turns) > 1 else None
    if not results or not isinstance(assistant_turn, dict) or not isinstance(assistant_turn.get("content"), list):
        return None
    calls = [part for part in assistant_turn["content"] if isinstance(part, dict) and part.get("type") == "tool_use"]
    calls_made = [(_text(call.get("id")), _text(call.get("name")), _text(call.get("input"))) for call in calls]
    joined = _calls_with_results(calls_made, results)
    return None if joined is None else (*joined, *other_parts)


def _responses_turn(turns: Sequence[Any]) -> tuple[str, ...] | None:
    results: dict[Any, str] = {}
    calls: list[tuple[str, str, str]] = []
    for turn in reversed(turns):
        kind = turn.get("type") if isinstance(turn, dict) else None
        if kind == "function_call_output" and not calls:
            results[_text(turn.get("call_id"))] = _text(turn.get("output"))
        elif kind == "function_call":
            calls.append((_text(turn.get("call_id")), _text(turn.get("name")), _text(turn.get("arguments"))))
        elif kind != "reasoning":
            break
    return _calls_with_results(calls[::-1], results)


def _calls_with_results(calls: Sequence[tuple[str, str, str]], results: Mapping[str, str]) -> tuple[str, ...] | None:
    """None unless every call has its result, because half of a turn is not comparable."""
    if not calls or any(call_id not in results for call_id, _, _ in calls):
        return None
    return tuple(text for call_id, name, arguments in calls for text in (name, arguments, results[call_id]))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except (TypeError, ValueError, RecursionError):  # not from JSON
        return ""
