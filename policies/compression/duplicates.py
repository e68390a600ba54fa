"""Replaces blocks that occurred earlier in the chat by a reference to their first occurrence.

Agents read the same file twice, print the same listing after every step and log the same traceback a hundred times. The first
occurrence is kept, so the beginning of a chat, and with it the provider's prompt cache, does not change as the chat grows.
Code and JSON are only replaced as a whole, because a reference in the middle would make them invalid.
"""

from collections.abc import Sequence

from policies.compression.markers import digest, is_marker, is_receipted, reference
from policies.compression.segments import Segment
from policies.compression.structural import collapse_repeats, fenced_blocks, is_fenced, open_fences
from policies.compression.text_kind import TextKind, kind_of

_BLOCK_CHARACTERS_MIN = 200
_ANCHOR_LINES = 3  # shorter runs ("}", "", "return") are alike by chance
_Anchor = tuple[str, str, str]
_Position = tuple[int, int]  # the text and the line in it


class _LineIndex:
    """The lines of the texts so far, indexed by every three consecutive lines. One entry per line, so linear."""

    def __init__(self) -> None:
        self.full_texts: dict[str, int] = {}
        self.lines: dict[int, list[str]] = {}
        self.known: set[str] = set()
        self.positions: dict[_Anchor, _Position] = {}

    def add(self, owner: int, lines: list[str]) -> None:
        self.lines[owner] = lines
        self.known.update(lines)
        for line, anchor in enumerate(zip(lines, lines[1:], lines[2:], strict=False)):
            self._add_anchor(anchor, (owner, line))

    def add_last(self, owner: int) -> None:
        """Index the line that was appended to the owner's lines."""
        lines = self.lines[owner]
        if len(lines) >= _ANCHOR_LINES:
            self._add_anchor((lines[-3], lines[-2], lines[-1]), (owner, len(lines) - _ANCHOR_LINES))

    def repeat_at(self, lines: list[str], start: int) -> tuple[int, int]:
        """The number of lines from `start` on that repeat an earlier position, and the owner of that position; (1, 0) if none do."""
        position = self.positions.get((lines[start], lines[start + 1], lines[start + 2]))
        if position is None:
            return 1, 0
        source, offset = self.lines[position[0]], position[1]
        length_max = min(len(lines) - start, len(source) - offset)
        run = _ANCHOR_LINES
        while run < length_max and lines[start + run] == source[offset + run] and not is_marker(lines[start + run]):
            run += 1
        return run, position[0]

    def _add_anchor(self, anchor: _Anchor, position: _Position) -> None:
        if not any(map(is_marker, anchor)):
            self.positions.setdefault(anchor, position)


def without_duplicates(segments: Sequence[Segment], texts: Sequence[str]) -> list[str]:
    """The texts (one per segment, in order) with repeated blocks replaced in the segments that may be changed."""
    index = _LineIndex()
    result = []
    for number, (segment, text) in enumerate(zip(segments, texts, strict=True)):
        if len(text) < _BLOCK_CHARACTERS_MIN or is_receipted(text):  # what a shortened text repeats is by chance
            result.append(text)
            continue
        changed = (
            _add_to_index(text, number, index) if segment.fixed else _with_references(text, number, segments, index)
        )
        copy_of = None if segment.fixed else _earlier_copy(index, text, changed)
        if copy_of is not None:
            changed = _whole_reference(segments[copy_of], result[copy_of])
        index.full_texts.setdefault(text, number)
        index.full_texts.setdefault(changed, number)
        result.append(changed)
    return result


def referenced_lines(source: str, references: Sequence[tuple[int, str]]) -> frozenset[int]:
    """The lines of `source` covered by references to it, which are given as (lines, digest of the first line)."""
    if not references:
        return frozenset()
    line_by_mark: dict[str, int] = {}
    for line, content in enumerate(source.split("\n")):
        line_by_mark.setdefault(digest(content), line)
    lines_found = [(line_by_mark[mark], lines) for lines, mark in references if mark in line_by_mark]
    return frozenset(line for first, lines in lines_found for line in range(first, first + lines))


def _add_to_index(text: str, number: int, index: _LineIndex) -> str:
    index.add(number, text.split("\n"))
    return text


def _earlier_copy(index: _LineIndex, text: str, changed: str) -> int | None:
    """The earlier text that was the same, or has become the same; None if there is none."""
    copy = index.full_texts.get(text)
    if copy is None and len(changed) >= _BLOCK_CHARACTERS_MIN:
        copy = index.full_texts.get(changed)
    return copy


def _whole_reference(source: Segment, replacement: str) -> str:
    lines = replacement.split("\n")
    mark = reference(len(lines), source.label, lines[0])
    return f'"{mark}"' if kind_of(replacement) is TextKind.JSON else mark


def _with_references(text: str, number: int, segments: Sequence[Segment], index: _LineIndex) -> str:
    lines = text.split("\n")
    if text in index.full_texts:
        return text
    if not _may_repeat(lines, index) or segments[number].exact or kind_of(text) in (TextKind.CODE, TextKind.JSON):
        return _add_to_index(text, number, index)
    replaced = "\n".join(_replace_blocks(lines, number, segments, index))
    blocks = (block if is_fenced(block) else collapse_repeats(block) for block in fenced_blocks(replaced))
    return "\n".join(line for block in blocks for line in block)


def _may_repeat(lines: list[str], index: _LineIndex) -> bool:
    """Whether there may be a block to replace. Called for every text, so it only uses sets."""
    if len(lines) < _ANCHOR_LINES:
        return False
    distinct = set(lines)
    return len(distinct) <= len(lines) - _ANCHOR_LINES + 1 or len(index.known & distinct) >= _ANCHOR_LINES


def _replace_blocks(lines: list[str], number: int, segments: Sequence[Segment], index: _LineIndex) -> list[str]:
    output: list[str] = []
    index.lines[number] = output
    fences = open_fences(lines)
    position = 0
    while position < len(lines):
        in_code = position > 0 and fences[position - 1]
        is_last = position + _ANCHOR_LINES > len(lines)
        run, owner = (1, 0) if in_code or is_last else index.repeat_at(lines, position)
        block_length = _length_outside_fence(fences, position, run)
        if sum(map(len, lines[position : position + block_length])) >= _BLOCK_CHARACTERS_MIN and run > 1:
            output.append(reference(block_length, segments[owner].label, lines[position]))
            index.add_last(number)
            position += block_length
            continue
        for line in lines[position : position + run]:  # all at once: looking again from each line would be quadratic
            output.append(line)
            index.add_last(number)
        position += run
    index.known.update(output)
    return output


def _length_outside_fence(fences: Sequence[bool], start: int, run: int) -> int:
    """The length of the run, shortened so that no code fence is open at its end."""
    while run and fences[start + run - 1]:
        run -= 1
    return run
