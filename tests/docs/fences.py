"""The fenced blocks of a Markdown page, and what the comments right behind them say.

<!-- expect: TEXT -->       the output has this text
<!-- expect-not: TEXT -->   the output does not have it
<!-- not run: REASON -->    the block is for reading
<!-- values: WHAT -->       the YAML is not a configuration of Farebox but WHAT
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```\n((?:\s*<!-- .*? -->\n)*)", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!-- ([\w -]+?): (.*?) -->")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    expected: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        notes = _NOTE.findall(match[4])
        indent = match[1]
        body = "\n".join(line.removeprefix(indent) for line in match[3].splitlines()) + "\n"
        yield Block(
            page,
            text.count("\n", 0, match.start()) + 1,
            match[2],
            body,
            tuple(value for name, value in notes if name == "expect"),
            tuple(value for name, value in notes if name == "expect-not"),
            {name: value for name, value in notes if not name.startswith("expect")},
        )
