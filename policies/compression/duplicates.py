"""Replaces blocks that occurred earlier in the chat by a reference to their first occurrence.

Agents read the same file twice, print the same listing after every step and log the same traceback a hundred times. The first
occurrence is kept, so the beginning of a chat, and with it the provider's prompt cache, does not change as the chat grows.
Code and JSON are only replaced as a whole, because a reference in the middle would make them invalid.
"""

from collections.abc import Sequence

from policies.compression.kinds import Kind, kind_of
from policies.compression.markers import digest, is_marker, is_receipted, reference
from policies.compression.segments import Segment
from policies.compression.structural import fenced_blocks, is_fenced, open_fences, repeats_counted

_BLOCK_CHARACTERS_MIN = 200
_ANCHOR_LINES = 3  # shorter runs ("}", "", "return") are alike by chance
_Anchor = tuple[str, str, str]
_Spot = tuple[int, int]  # the text and the line in it


class _Seen:
    """The lines of the texts so far, indexed by every three consecutive lines. One entry per line, so linear."""

    def __init__(self) -> None:
        self.whole: dict[str, int] = {}
        self.lines: dict[int, list[str]] = {}
        self.known: set[str] = set()
        self.spots: dict[_Anchor, _Spot] = {}

    def add(self, owner: int, lines: list[str]) -> None:
        self.lines[owner] = lines
        self.known.update(lines)
        for line, anchor in enumerate(zip(lines, lines[1:], lines[2:], strict=False)):
            self._note(anchor, (owner, line))

    def add_last(self, owner: int) -> None:
        """Index the line that was appended to the owner's lines."""
        lines = self.lines[owner]
        if len(lines) >= _ANCHOR_LINES:
            self._note((lines[-3], lines[-2], lines[-1]), (owner, len(lines) - _ANCHOR_LINES))

    def run_at(self, lines: list[str], start: int) -> tuple[int, int]:
        """The number of lines from `start` on that repeat an earlier spot, and the owner of that spot; (1, 0) if none do."""
        spot = self.spots.get((lines[start], lines[start + 1], lines[start + 2]))
        if spot is None:
            return 1, 0
        source, offset = self.lines[spot[0]], spot[1]
        most = min(len(lines) - start, len(source) - offset)
        run = _ANCHOR_LINES
        while run < most and lines[start + run] == source[offset + run] and not is_marker(lines[start + run]):
            run += 1
        return run, spot[0]

    def _note(self, anchor: _Anchor, spot: _Spot) -> None:
        if not any(map(is_marker, anchor)):
            self.spots.setdefault(anchor, spot)


def without_duplicates(segments: Sequence[Segment], texts: Sequence[str]) -> list[str]:
    """The texts (one per segment, in order) with repeated blocks replaced in the segments that may be changed."""
    seen = _Seen()
    result = []
    for number, (segment, text) in enumerate(zip(segments, texts, strict=True)):
        if len(text) < _BLOCK_CHARACTERS_MIN or is_receipted(text):  # what a shortened text repeats is by chance
            result.append(text)
            continue
        changed = _remembered(text, number, seen) if segment.fixed else _referring(text, number, segments, seen)
        again = None if segment.fixed else _same(seen, text, changed)
        if again is not None:
            changed = _whole_reference(segments[again], result[again])
        seen.whole.setdefault(text, number)
        seen.whole.setdefault(changed, number)
        result.append(changed)
    return result


def referenced_lines(source: str, wanted: Sequence[tuple[int, str]]) -> frozenset[int]:
    """The lines of `source` covered by references to it, which are given as (lines, digest of the first line)."""
    if not wanted:
        return frozenset()
    places: dict[str, int] = {}
    for line, content in enumerate(source.split("\n")):
        places.setdefault(digest(content), line)
    found = [(places[mark], lines) for lines, mark in wanted if mark in places]
    return frozenset(line for first, lines in found for line in range(first, first + lines))


def _remembered(text: str, number: int, seen: _Seen) -> str:
    seen.add(number, text.split("\n"))
    return text


def _same(seen: _Seen, text: str, changed: str) -> int | None:
    """The earlier text that was the same, or has become the same; None if there is none."""
    found = seen.whole.get(text)
    if found is None and len(changed) >= _BLOCK_CHARACTERS_MIN:
        found = seen.whole.get(changed)
    return found


def _whole_reference(source: Segment, stands: str) -> str:
    lines = stands.split("\n")
    mark = reference(len(lines), source.label, lines[0])
    return f'"{mark}"' if kind_of(stands) is Kind.JSON else mark


def _referring(text: str, number: int, segments: Sequence[Segment], seen: _Seen) -> str:
    lines = text.split("\n")
    if text in seen.whole:
        return text
    if not _repeats(lines, seen) or segments[number].exact or kind_of(text) in (Kind.CODE, Kind.JSON):
        return _remembered(text, number, seen)
    replaced = "\n".join(_blocks_replaced(lines, number, segments, seen))
    blocks = (block if is_fenced(block) else repeats_counted(block) for block in fenced_blocks(replaced))
    return "\n".join(line for block in blocks for line in block)


def _repeats(lines: list[str], seen: _Seen) -> bool:
    """Whether there may be a block to replace. Called for every text, so it only uses sets."""
    if len(lines) < _ANCHOR_LINES:
        return False
    distinct = set(lines)
    return len(distinct) <= len(lines) - _ANCHOR_LINES + 1 or len(seen.known & distinct) >= _ANCHOR_LINES


def _blocks_replaced(lines: list[str], number: int, segments: Sequence[Segment], seen: _Seen) -> list[str]:
    kept: list[str] = []
    seen.lines[number] = kept
    fences = open_fences(lines)
    position = 0
    while position < len(lines):
        in_code = position > 0 and fences[position - 1]
        is_last = position + _ANCHOR_LINES > len(lines)
        run, owner = (1, 0) if in_code or is_last else seen.run_at(lines, position)
        whole = _closed(fences, position, run)
        if sum(map(len, lines[position : position + whole])) >= _BLOCK_CHARACTERS_MIN and run > 1:
            kept.append(reference(whole, segments[owner].label, lines[position]))
            seen.add_last(number)
            position += whole
            continue
        for line in lines[position : position + run]:  # all at once: looking again from each line would be quadratic
            kept.append(line)
            seen.add_last(number)
        position += run
    seen.known.update(kept)
    return kept


def _closed(fences: Sequence[bool], start: int, run: int) -> int:
    """The length of the run, shortened so that no code fence is open at its end."""
    while run and fences[start + run - 1]:
        run -= 1
    return run
