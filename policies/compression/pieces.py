"""Splits a text where it may be cut: sentences, log records, table rows, top-level code, JSON records.

Pieces are never cut inside. All pieces joined are the original text. If some are left out, a marker says so in their place,
and JSON remains JSON.
"""

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import field
from typing import Protocol

from policies.compression.markers import GAP, sign_receipt, unsigned_receipt
from policies.compression.structural import fenced_blocks, is_fenced
from policies.compression.text_kind import TIMESTAMP, TextKind
from policies.values import value_class

_SENTENCE_END = re.compile(r"(?<=[.!?]\s)(?=\S)|(?<=[。！？])")
_LONG_CHARACTERS = 400
_LONG_CHUNK = re.compile(rf"(?s).{{1,{_LONG_CHARACTERS}}}(?:\s+|\Z)|.{{{_LONG_CHARACTERS}}}")
_SENTENCE_CHARACTERS_MIN = 80  # shorter lines are not split
_WRAPPED_CHARACTERS_MIN, _WRAPPED_CHARACTERS_MAX = 50, 160  # the line length of wrapped paragraphs
_ITEM = re.compile(r"\s*(?:[-*+•#>|:=~.]|\d{1,3}[.)]\s|\w[\w .-]{0,30}: )")
_HEADING = re.compile(r"#{1,6} \S|(?:\*\*|__)[^*_\n]{1,80}(?:\*\*|__):?\s*$|[^\s#>|*-][^.!?\n]{0,60}:\s*$")
_UNDERLINE = re.compile(r"[=~^*+-]{3,}\s*$")
_LINE_CHARACTERS_MAX = 2000  # of a line of code: longer ones are minified, or a trap for regular expressions
_HEADING_CHARACTERS_MAX = 120
_CODE_CONTINUES = re.compile(r"\s|[)\]}]|(?:else|elif|except|finally|catch)\b|$")
_LITERAL = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|#.*|//.*")
_OPENING = re.compile(r"[(\[{]")
_CLOSING = re.compile(r"[)\]}]")
_PYTHON = re.compile(r"(?m)^(?:def \w|async def |class \w[^{\n]*:\s*$|from \S+ import |import [\w.]+\s*$)")
_NOUNS = {TextKind.LOG: "log records", TextKind.TABLE: "rows", TextKind.CODE: "code blocks", TextKind.JSON: "records"}


class Pieces(Protocol):
    """A text in pieces. `contexts` are the pieces in the form for ranking: with their heading or keys."""

    @property
    def units(self) -> list[str]: ...

    @property
    def contexts(self) -> list[str]: ...

    @property
    def required(self) -> frozenset[int]:
        """Pieces that the others cannot be understood without: the header of a table."""
        ...

    def render(self, kept: Set[int], note: str = "") -> str:
        """The text of these pieces. Each gap is marked, the first one with a receipt followed by the note.

        The note must be valid inside a JSON string as it is.
        """
        ...


@value_class
class TextPieces:
    """Consecutive pieces, which together are the text."""

    kind: TextKind
    units: list[str]
    contexts: list[str]
    required: frozenset[int] = field(default=frozenset())
    comment: tuple[str, str] = ("", "")  # turns a marker into a comment if code is cut

    def render(self, kept: Set[int], note: str = "") -> str:
        return sign_receipt(self.render_unsigned(kept, self.receipt(len(kept)) + note))

    def receipt(self, kept: int) -> str:
        noun = _NOUNS.get(self.kind, "passages")
        return unsigned_receipt(f"{len(self.units) - kept} of {len(self.units)} {noun} left out")

    def render_unsigned(self, kept: Set[int], first_marker: str) -> str:
        """The text with `first_marker` in its first gap and plain markers in the others."""
        parts: list[str] = []
        marker = first_marker
        inside_gap = False
        for number, unit in enumerate(self.units):
            if number in kept:
                parts.append(unit)
                inside_gap = False
            elif not inside_gap:
                parts.append(self._marker(marker, "".join(parts[-1:]), unit))
                marker, inside_gap = GAP, True
        return "".join(parts)

    def _marker(self, marker: str, text_before: str, dropped: str) -> str:
        """On a line of its own if lines were dropped, inline if sentences were."""
        if self.kind is TextKind.PROSE and text_before and not text_before.endswith("\n"):
            return f"{marker} " if dropped[-1:] != "\n" else f"{marker}\n"
        opening, closing = self.comment
        return f"{opening}{marker}{closing}\n"


def text_pieces(text: str, kind: TextKind) -> TextPieces:
    """Any text except JSON, which `json_pieces` splits."""
    if kind is TextKind.CODE:
        units = list(_code_statements(text))
        return TextPieces(kind, units, units, comment=_comment(text))
    if kind is TextKind.TABLE:
        units = text.splitlines(keepends=True)
        ruled = len(units) > 1 and not units[1].strip().strip("|-+:= \t")
        return TextPieces(kind, units, units, frozenset({0, 1} if ruled else {0}))
    units = [unit for block in _blocks(text) for unit in _block_units(block, kind)]
    return TextPieces(kind, units, list(_with_headings(units)))


def _blocks(text: str) -> Iterator[str]:
    blocks = list(fenced_blocks(text))
    for number, block in enumerate(blocks):
        end = "\n" if number < len(blocks) - 1 else ""
        yield "\n".join(block) + end


def _block_units(block: str, kind: TextKind) -> Iterator[str]:
    if is_fenced(block.split("\n", 1)):
        yield block
    elif kind is TextKind.LOG:
        yield from _log_records(block)
    else:
        yield from _sentences(block)


def _log_records(text: str) -> Iterator[str]:
    """Log lines, each with its continuation: indented lines, and the last line of a traceback."""
    record = ""
    in_traceback = False
    for line in text.splitlines(keepends=True):
        continues = line[:1] in " \t" or line.startswith(("Traceback", "Caused by")) or not line.strip()
        if record and not continues and not (in_traceback and not TIMESTAMP.match(line)):
            yield record
            record = ""
        in_traceback = line.startswith("Traceback") or (in_traceback and line[:1] in " \t")
        record += line
        if len(record) > 4 * _LONG_CHARACTERS:  # bound the size of a record
            yield record
            record = ""
    if record:
        yield record


def _sentences(text: str) -> Iterator[str]:
    """Lines, and in running text sentences, even across lines; endless ones are split between words.

    A heading stays with the text below it.
    """
    pending = ""
    for paragraph in _join_wrapped_lines(text.splitlines(keepends=True)):
        if not paragraph.strip() or _HEADING.match(paragraph) or (pending and _UNDERLINE.match(paragraph)):
            pending += paragraph
            continue
        first, *others = _SENTENCE_END.split(paragraph) if len(paragraph) > _SENTENCE_CHARACTERS_MIN else [paragraph]
        yield from _split_long(pending + first)
        pending = ""
        for sentence in others:
            yield from _split_long(sentence)
    if pending:
        yield from _split_long(pending)


def _join_wrapped_lines(lines: Sequence[str]) -> Iterator[str]:
    """Lines, with those of a wrapped paragraph joined: a long line that does not end a sentence continues in the next one."""
    paragraph = ""
    for number, line in enumerate(lines):
        paragraph += line
        following = lines[number + 1] if number + 1 < len(lines) else ""
        continues = (
            _WRAPPED_CHARACTERS_MIN <= len(line) <= _WRAPPED_CHARACTERS_MAX
            and line.rstrip()[-1:] not in ".!?:"
            and following[:1].isalnum() == line[:1].isalnum()
            and not _ITEM.match(following)
            and bool(following.strip())
        )
        if not continues or len(paragraph) > 4 * _LONG_CHARACTERS:
            yield paragraph
            paragraph = ""


def _split_long(unit: str) -> Iterator[str]:
    if len(unit) <= 2 * _LONG_CHARACTERS:
        yield unit
    else:
        yield from _LONG_CHUNK.findall(unit)


def _code_statements(text: str) -> Iterator[str]:
    """Top-level statements: a piece begins in column 0, outside of brackets and multi-line strings.

    If brackets inside strings confuse the count, pieces get larger, but not wrong.
    """
    unit = ""
    depth = 0
    quoted = False
    decorated = False
    for line in text.splitlines(keepends=True):
        starts = not quoted and depth <= 0 and not _CODE_CONTINUES.match(line)
        if starts and not decorated and unit.strip():
            yield unit
            unit = ""
        if starts:
            decorated = line.startswith("@")
        unit += line
        if (line.count('"""') + line.count("'''")) % 2:
            quoted = not quoted
        if not quoted:
            bare = _LITERAL.sub("", line) if len(line) <= _LINE_CHARACTERS_MAX else line
            depth = max(0, depth + len(_OPENING.findall(bare)) - len(_CLOSING.findall(bare)))
    if unit:
        yield unit


def _comment(code: str) -> tuple[str, str]:
    """How this code writes comments, guessed from its line ends; `#` if unknown."""
    if code.lstrip()[:1] == "<":
        return "<!-- ", " -->"
    if _PYTHON.search(code):
        return ("# ", "")
    return ("// ", "") if code.count(";\n") + code.count("{\n") > code.count(":\n") else ("# ", "")


def _with_headings(units: list[str]) -> Iterator[str]:
    """Each unit, preceded by the heading of its section."""
    heading = ""
    for unit in units:
        first = unit.lstrip("\n").split("\n", 1)[0]
        if _HEADING.match(first):
            heading = first[:_HEADING_CHARACTERS_MAX]
            yield unit
        else:
            yield f"{heading}\n{unit}" if heading else unit
