"""The kind of a text, detected from its beginning, because strategies treat logs, tables, pages, code and prose differently."""

import re
from enum import StrEnum

from policies.compression.json_text import looks_like_json


class TextKind(StrEnum):
    JSON = "json"
    CODE = "code"
    MARKUP = "markup"
    LOG = "log"
    TABLE = "table"
    PROSE = "prose"


_SAMPLE_CHARACTERS = 6000
_SAMPLE_LINES = 80
_MARKUP = re.compile(
    r"\s*(?:<\?xml[^>]{0,200}\?>\s*)?<(?:!doctype|html|head|body|div|section|article|main|table|ul|p|span|feed|rss)\b",
    re.I,
)
_DIFF = re.compile(r"(?m)^(?:diff --git |@@ -\d|--- a/|\*\*\* (?:Begin|Update) )")
_CODE_LINE = re.compile(
    r"\s*(?:\d+\s*[\t:|→]\s*)?(?:"
    r"(?:async )?def \w|class \w|from [\w.]+ import |import [\w.{*]|@\w+|return\b|if .*:$|elif .*:$|else:$|for .* in .*:$"
    r"|while .*:$|try:$|except\b.*:$|with .*:$|raise \w|#include|#define|using \w|package \w|func \w|fn \w|pub |let \w|const \w|var \w"
    r"|export |function\b|public |private |protected |static |struct |interface |impl |type \w+ =|\} else|.*[{};]$|.*\) ?=>.*|</?\w+>?$"
    r"|(?:self\.)?[\w.]+ = .+|SELECT |CREATE |INSERT )"
)
TIMESTAMP = re.compile(
    r"\[?(?:\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\]?(?=[\s|:,-]|$)"
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?=\s)"
)
_LOG_LEVEL = re.compile(
    r"\b(?:DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL|FATAL|NOTICE|TRACE)\b|\[(?:debug|info|warn|warning|error|notice)\]"
)
_LOG_SHARE_MIN = 0.3
_COLUMNS = re.compile(r" {2,}")
_COLUMN_WORDS_MAX = 5  # in all columns but the last, which may be a description


def kind_of(text: str) -> TextKind:
    """Reads at most 6,000 characters, except that JSON must parse as a whole."""
    if looks_like_json(text):
        return TextKind.JSON
    if _MARKUP.match(text[:400]):
        return TextKind.MARKUP
    lines = [line for line in text[:_SAMPLE_CHARACTERS].split("\n")[:_SAMPLE_LINES] if line.strip()]
    if not lines:
        return TextKind.PROSE
    return _kind_of_lines(lines)


def _kind_of_lines(lines: list[str]) -> TextKind:
    if _DIFF.search("\n".join(lines)):
        return TextKind.CODE
    logged = sum(1 for line in lines if TIMESTAMP.match(line) or _LOG_LEVEL.search(line[:80]))
    if logged >= _LOG_SHARE_MIN * len(lines):
        return TextKind.LOG
    tabular = sum(1 for line in lines if _is_row(line))
    if len(lines) >= 3 and tabular >= 0.6 * len(lines):
        return TextKind.TABLE
    coded = sum(1 for line in lines if _CODE_LINE.match(line[:300]))
    return TextKind.CODE if len(lines) >= 3 and coded >= 0.4 * len(lines) else TextKind.PROSE


def _is_row(line: str) -> bool:
    """Whether a line is a row of a table: bars, tabs, three commas without a sentence's spaces, or columns two blanks apart."""
    if line.count("|") >= 2 or line.count("\t") >= 2:
        return True
    if line.count(",") >= 3 and line.count(", ") * 3 <= line.count(","):
        return True
    line = line.strip()
    if line.count("  ") < 2:
        return False
    return all(cell.count(" ") < _COLUMN_WORDS_MAX for cell in _COLUMNS.split(line)[:-1])
