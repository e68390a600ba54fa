"""Minified JSON in pieces: the records of its arrays, the entries of its large objects, the passages of its long texts.

Records are slices of the text, so what is kept is unchanged. Each gap is marked by a string in its array or an entry in its
object.
"""

import json
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from policies.compression.markers import sign_receipt, unsigned_receipt
from policies.compression.pieces import TextPieces, text_pieces
from policies.compression.text_kind import TextKind
from policies.values import value_class

_DEPTH_MAX = 6  # deeper values are kept or dropped whole: nesting must not make parsing quadratic
_ENTRIES_MIN = 12  # objects with fewer keys are records, which would be misread without some of their keys
_TEXT_CHARACTERS_MIN = 400
_KEYS_CHARACTERS_MAX = 120  # the part of the keys above a record that its ranking reads
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder()


@value_class
class _Record:
    """A record that can be dropped, by the number of its unit."""

    unit: int


@value_class
class _LongText:
    """A long string, whose passages are the units from `first` on."""

    first: int
    pieces: TextPieces


@value_class
class _Container:
    """An array or object; each item of an object is written after its key."""

    brackets: str
    items: list[tuple[str, "_Node"]]


_Node = str | _Record | _LongText | _Container


@dataclass(slots=True)
class JsonPieces:
    """See `Pieces`. Built by `json_pieces`, and not changed afterwards."""

    root: _Node = ""
    units: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    required: frozenset[int] = frozenset()

    def add(self, unit: str, keys: str) -> int:
        self.units.append(unit)
        self.contexts.append(f"{keys} {unit}")
        return len(self.units) - 1

    def render(self, kept: Set[int], note: str = "") -> str:
        left_out = len(self.units) - len(kept)
        markers = _markers(unsigned_receipt(f"{left_out} of {len(self.units)} records left out") + note)
        return sign_receipt(_render_node(self.root, self, kept, markers))


def json_pieces(text: str) -> JsonPieces:
    """`text` is valid, minified JSON."""
    pieces = JsonPieces()
    record_characters_max = max(200, min(1500, len(text) // 20))
    pieces.root = _node(text, pieces, "", _DEPTH_MAX, record_characters_max)
    return pieces


def _node(raw: str, pieces: JsonPieces, keys: str, depth: int, record_characters_max: int) -> _Node:
    if raw[0] == '"' and len(raw) >= _TEXT_CHARACTERS_MIN and not _SURROGATE.search(raw):
        return _long_text(raw, pieces, keys)
    if len(raw) <= record_characters_max or not depth or raw[0] not in "[{":
        return raw
    if raw[0] == "[":
        elements = [("", element) for element in _elements(raw)]
        return _container("[]", elements, pieces, keys, depth, record_characters_max, droppable=len(elements) > 1)
    entries = list(_entries(raw))
    return _container("{}", entries, pieces, keys, depth, record_characters_max, droppable=len(entries) >= _ENTRIES_MIN)


def _container(
    brackets: str,
    slices: list[tuple[str, str]],
    pieces: JsonPieces,
    keys: str,
    depth: int,
    record_characters_max: int,
    *,
    droppable: bool,
) -> _Container:
    items: list[tuple[str, _Node]] = []
    for key, raw in slices:
        path = f"{keys[-_KEYS_CHARACTERS_MAX:]} {key[:_KEYS_CHARACTERS_MAX]}"
        if droppable and len(raw) <= record_characters_max:
            items.append((key, _Record(pieces.add(raw, path))))
        else:
            items.append((key, _node(raw, pieces, path, depth - 1, record_characters_max)))
    return _Container(brackets, items)


def _long_text(raw: str, pieces: JsonPieces, keys: str) -> _Node:
    inner = text_pieces(json.loads(raw), TextKind.PROSE)
    if len(inner.units) < 2:
        return raw
    first = len(pieces.units)
    for unit, context in zip(inner.units, inner.contexts, strict=True):
        pieces.add(unit, f"{keys} {context}" if context != unit else keys)
    return _LongText(first, inner)


def _elements(raw: str) -> Iterator[str]:
    position = 1
    while raw[position] != "]":
        end = _DECODER.raw_decode(raw, position)[1]
        yield raw[position:end]
        position = end + (raw[end] == ",")


def _entries(raw: str) -> Iterator[tuple[str, str]]:
    position = 1
    while raw[position] != "}":
        value = _DECODER.raw_decode(raw, position)[1] + 1
        end = _DECODER.raw_decode(raw, value)[1]
        yield raw[position:value], raw[value:end]
        position = end + (raw[end] == ",")


def _markers(receipt: str) -> Iterator[str]:
    """The receipt once, then empty strings, so that each further gap has its own count."""
    yield receipt
    while True:
        yield ""


def _render_node(node: _Node, pieces: JsonPieces, kept: Set[int], markers: Iterator[str]) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, _Record):
        return pieces.units[node.unit]
    if isinstance(node, _LongText):
        numbers = range(len(node.pieces.units))
        inner = {number for number in numbers if node.first + number in kept}
        if len(inner) == len(numbers):
            return json.dumps(node.pieces.render_unsigned(inner, ""), ensure_ascii=False)
        marker = next(markers) or _gap_marker(len(numbers) - len(inner), "passages")
        return json.dumps(node.pieces.render_unsigned(inner, marker), ensure_ascii=False)
    parts = _render_items(node, pieces, kept, markers)
    return node.brackets[0] + ",".join(parts) + node.brackets[1]


def _render_items(group: _Container, pieces: JsonPieces, kept: Set[int], markers: Iterator[str]) -> list[str]:
    parts: list[str] = []
    dropped = 0
    is_object = group.brackets == "{}"
    for key, node in group.items:
        if isinstance(node, _Record) and node.unit not in kept:
            dropped += 1
            continue
        if dropped and not is_object:
            parts.append(f'"{next(markers) or _gap_marker(dropped, "records")}"')
            dropped = 0
        parts.append(key + _render_node(node, pieces, kept, markers))
    if dropped:  # an object has one marker at its end: a second entry of the same name would hide the first
        marker = f'"{next(markers) or _gap_marker(dropped, "records")}"'
        parts.append(f"{marker}:null" if is_object else marker)
    return parts


def _gap_marker(number: int, noun: str) -> str:
    return f"[… {number} {noun} left out …]"
