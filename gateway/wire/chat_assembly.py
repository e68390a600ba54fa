"""Assembles a chat answer from the chunks of its stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.wire.events import append_text, index_of, objects_in, objects_of
from gateway.wire.openai_errors import upstream_event_error

# Merges a piece of a choice into the choices so far, by index.
MergeChoice = Callable[[dict[int, dict[str, Any]], dict[str, Any]], None]
_ONLY_OF_CHUNKS: Final = frozenset({"choices", "obfuscation"})


def assemble_answer(pieces: bytes) -> dict[str, Any]:
    """The buffered answer that is equivalent to the stream. Raises `StreamBroken`."""
    answer = merge_chunks(pieces, "chat.completion", _merge_choice)
    for choice in answer["choices"]:
        _list_calls(choice["message"])
    return answer


def merge_chunks(pieces: bytes, kind: str, merge_choice: MergeChoice) -> dict[str, Any]:
    """An answer of chat or of legacy completions, with its choices by index. Raises `StreamBroken`."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in objects_of(pieces):
        if chunk.get("error"):
            raise upstream_event_error(chunk["error"])
        answer |= {key: value for key, value in chunk.items() if key not in _ONLY_OF_CHUNKS and value is not None}
        for choice in objects_in(chunk.get("choices"), "choices"):
            merge_choice(choices, choice)
    answer["object"] = kind
    answer["choices"] = [choices[index] for index in sorted(choices)]
    return answer


def merge_ends(merged: dict[str, Any], choice: Mapping[str, Any]) -> None:
    """Merge a chunk's finish reason and log probabilities, which are lists that grow chunk by chunk."""
    if choice.get("finish_reason") is not None:
        merged["finish_reason"] = choice["finish_reason"]
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        merged_logprobs = merged["logprobs"] = merged["logprobs"] or {}
        for key, value in logprobs.items():
            grows = isinstance(value, list) and isinstance(merged_logprobs.get(key), list)
            merged_logprobs[key] = merged_logprobs[key] + value if grows else value


def _merge_choice(choices: dict[int, dict[str, Any]], choice: dict[str, Any]) -> None:
    index = index_of(choice)
    merged = choices.setdefault(
        index,
        {"index": index, "message": {"role": "assistant", "content": None}, "logprobs": None, "finish_reason": None},
    )
    delta = choice.get("delta")
    if isinstance(delta, dict):
        _merge_delta(merged["message"], delta)
    merge_ends(merged, choice)


def _merge_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            _merge_tool_calls(message.setdefault("tool_calls", {}), objects_in(value, "tool calls"))
        elif key == "role":
            message["role"] = value or message["role"]
        elif isinstance(value, dict):
            _merge_object(message, key, value)
        elif isinstance(value, str | list) and isinstance(message.get(key), type(value)):
            message[key] = message[key] + value
        elif value is not None or key not in message:
            message[key] = value


def _merge_object(message: dict[str, Any], key: str, value: Mapping[str, Any]) -> None:
    """Merge a piece of a function call or of audio: ids and names come once, the long fields in pieces."""
    merged = message.get(key)
    if not isinstance(merged, dict):
        merged = message[key] = {}
    for name, part in value.items():
        grows = name in ("arguments", "data", "transcript") and isinstance(part, str)
        merged[name] = append_text(merged.get(name), part) if grows else part


def _merge_tool_calls(calls: dict[int, dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    """Merge by index, which some servers count from one."""
    for delta in deltas:
        call = calls.setdefault(index_of(delta, default=len(calls)), {"type": "function"})
        for key, value in delta.items():
            if isinstance(value, dict):  # `function`, or `custom`
                _join_strings(call, key, value)
            elif key != "index" and value is not None:
                call[key] = value


def _list_calls(message: dict[str, Any]) -> None:
    calls = message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]


def _join_strings(call: dict[str, Any], key: str, part: Mapping[str, Any]) -> None:
    merged = call.get(key)
    if not isinstance(merged, dict):
        merged = call[key] = {}
    for name, value in part.items():
        if isinstance(value, str):
            merged[name] = append_text(merged.get(name), value)
