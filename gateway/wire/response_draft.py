"""A Responses answer as far as it has been streamed, to end it properly when the budget ends it or the provider breaks off."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from gateway.errors import StreamBroken
from gateway.wire.events import index_of, kind_of, object_in

# The field of an item that a delta belongs to: (list of parts or "", field). All of it is billed as output. A summary of the
# reasoning is counted in place of the reasoning itself, which is not shown.
DELTAS: Final = {
    "response.output_text.delta": ("content", "text"),
    "response.refusal.delta": ("content", "refusal"),
    "response.reasoning_text.delta": ("content", "text"),
    "response.reasoning_summary_text.delta": ("summary", "text"),
    "response.function_call_arguments.delta": ("", "arguments"),
    "response.mcp_call_arguments.delta": ("", "arguments"),
    "response.custom_tool_call_input.delta": ("", "input"),
    "response.code_interpreter_call_code.delta": ("", "code"),
}
_PARTS: Final = {
    "response.content_part.added": ("content", "content_index"),
    "response.reasoning_summary_part.added": ("summary", "summary_index"),
}
_PART_KEYS: Final = dict(_PARTS.values())
_TEXT_DONE: Final = {
    "output_text": ("response.output_text.done", "text"),
    "refusal": ("response.refusal.done", "refusal"),
}


class ResponseDraft:
    """Collects events, and assembles them only on demand, so that deltas stay cheap."""

    def __init__(self, model: str) -> None:
        self._response: dict[str, Any] = {"id": "resp_farebox", "object": "response", "created_at": 0, "model": model}
        self._is_created = False
        self._number = -1
        self._items: dict[int, dict[str, Any]] = {}
        self._open: set[int] = set()
        self._open_parts: set[tuple[int, int]] = set()
        self._texts: defaultdict[tuple[int, str, int, str], list[str]] = defaultdict(list)

    def add_event(self, event: dict[str, Any]) -> None:
        """Add an event to the draft. Events with impossible indexes or items are skipped: the client has them, and may judge."""
        number = event.get("sequence_number")
        if type(number) is int:
            self._number = number
        try:
            self._apply_event(event)
        except StreamBroken:
            return

    def _apply_event(self, event: dict[str, Any]) -> None:
        kind = kind_of(event)
        if kind in DELTAS:
            self._append_text(event, *DELTAS[kind])
        elif kind in ("response.created", "response.in_progress", "response.queued"):
            self._is_created = True
            self._response = object_in(event, "response")
        elif kind == "response.output_item.added":
            index = index_of(event, "output_index")
            self._set_item(index, object_in(event, "item"))
            self._open.add(index)
        elif kind == "response.output_item.done":
            self._set_item(index_of(event, "output_index"), object_in(event, "item"))
        elif kind in _PARTS:
            self._add_part(event, *_PARTS[kind])
        elif kind == "response.content_part.done":
            self._open_parts.discard((index_of(event, "output_index"), index_of(event, "content_index")))

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def incomplete(self) -> dict[str, Any]:
        """The answer so far, marked as ended by its length, with unknown usage."""
        return {
            **self._response,
            "status": "incomplete",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [self._item(index) for index in sorted(self._items)],
            "usage": None,
        }

    def cut(self) -> list[dict[str, Any]]:
        """The events that close every open part and item, and then the answer."""
        closing = self._opening()
        closing += [event for part_key in sorted(self._open_parts) for event in self._part_ends(*part_key)]
        for index in sorted(self._open):
            item = self._item(index)
            closing.append({"type": "response.output_item.done", "output_index": index, "item": item})
        closing.append({"type": "response.incomplete", "response": self.incomplete()})
        return [{**event, "sequence_number": self.next_number()} for event in closing]

    def failed_event(self, code: str, message: str) -> dict[str, Any]:
        output = [self._item(index) for index in sorted(self._items)]
        response = {**self._response, "status": "failed", "error": {"code": code, "message": message}, "output": output}
        return {"type": "response.failed", "response": response, "sequence_number": self.next_number()}

    def _opening(self) -> list[dict[str, Any]]:
        if self._is_created:
            return []
        return [{"type": "response.created", "response": {**self._response, "status": "in_progress", "output": []}}]

    def _part_ends(self, index: int, part_index: int) -> list[dict[str, Any]]:
        item = self._item(index)
        part = _part_at(item, "content", part_index)
        position = {"item_id": item.get("id"), "output_index": index, "content_index": part_index}
        ends: list[dict[str, Any]] = []
        if kind_of(part) in _TEXT_DONE:
            name, field = _TEXT_DONE[kind_of(part)]
            ends.append({"type": name, **position, field: part.get(field, ""), "logprobs": []})
        return [*ends, {"type": "response.content_part.done", **position, "part": part}]

    def _append_text(self, event: dict[str, Any], parts: str, field: str) -> None:
        delta = event.get("delta")
        if isinstance(delta, str):
            index, part_index = index_of(event, "output_index"), index_of(event, _PART_KEYS[parts]) if parts else 0
            key = (index, parts, part_index, field)
            if parts and key not in self._texts:
                _part_at(self._started_item(index), parts, part_index)
            self._texts[key].append(delta)

    def _add_part(self, event: dict[str, Any], parts: str, part_key: str) -> None:
        index, part_index = index_of(event, "output_index"), index_of(event, part_key)
        _part_at(self._started_item(index), parts, part_index).update(object_in(event, "part"))
        if parts == "content":
            self._open_parts.add((index, part_index))

    def _started_item(self, index: int) -> dict[str, Any]:
        if index not in self._items:
            raise StreamBroken("The provider sent a part of an item that it had not begun.")
        return self._items[index]

    def _set_item(self, index: int, item: dict[str, Any]) -> None:
        """Store the item as the provider sends it, replacing everything collected for it so far."""
        self._items[index] = item
        self._open.discard(index)
        self._open_parts = {part_key for part_key in self._open_parts if part_key[0] != index}
        for key in [key for key in self._texts if key[0] == index]:
            del self._texts[key]

    def _item(self, index: int) -> dict[str, Any]:
        """The item, including what has been written to it since it was added."""
        item = self._items[index]
        if index not in self._open:
            return item
        for (of_index, parts, part_index, field), texts in self._texts.items():
            if of_index == index:
                target = _part_at(item, parts, part_index) if parts else item
                target[field] = "".join(texts)
        item["status"] = "incomplete"
        return item


def _part_at(item: dict[str, Any], parts: str, index: int) -> dict[str, Any]:
    """The part at this index, created if the provider did not announce it. Raises `StreamBroken` if earlier parts are missing."""
    part_list = item.get(parts)
    if not isinstance(part_list, list):
        part_list = item[parts] = []
    if index > len(part_list):
        raise StreamBroken("The provider sent a part and left out those before it.")
    if index == len(part_list):
        part_list.append({})
    if not isinstance(part_list[index], dict):
        part_list[index] = {}
    part: dict[str, Any] = part_list[index]
    return part
