"""Structural compression: removes what only affects appearance, and keeps the content.

It handles white space, JSON and table padding, terminal escapes, progress bars, repeated lines and dates, scripts and styling
of pages, and base64. Code, and files that an agent may be about to edit, are left byte for byte. Each pass is linear and
idempotent.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import eq

from policies.compression.json_text import minified, tabulated
from policies.compression.markup import without_noise
from policies.compression.policy import Aggressiveness
from policies.compression.text_kind import TIMESTAMP, TextKind, kind_of

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_SPACES = re.compile(r"(?<=\S) {3,}")
_SPACES_HIGH = re.compile(r"(?<=\S) {2,}")
_RULER_SYMBOLS = "-=_*~#+."
_RULER_CHARACTERS = 4
_RULERS = tuple((character * 8, re.compile(re.escape(character) + "{8,}")) for character in _RULER_SYMBOLS)
_BASE64_CHARACTERS_MIN = 512
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/_-]{512,}={0,2}(?![A-Za-z0-9+/=_-])")
_DIGITS = re.compile(r"[0-9]+")
_BAR = re.compile(r"[#=━█▉▊▋▌▍▎▏░▒▓>.\- ]+")
_DATE = re.compile(r"(\[?)(\d{4}[-/]\d\d[-/]\d\d)[T ](?=\d\d:\d\d:\d\d)")
_REPEAT_CHARACTERS_MIN = 48  # what a repeat must save, because its marker itself costs about ten tokens
_FENCES = ("```", "~~~")
_JSON_FENCE = re.compile(r"(?:```|~~~)\s*(?:json|JSON)\s*\Z")


def compress_structure(text: str, aggressiveness: Aggressiveness, *, exact: bool = False) -> str:
    """The same content in fewer characters; `exact` texts (files under edit) are returned unchanged."""
    if exact or not text:
        return text
    kind = kind_of(text)
    if kind is TextKind.JSON:
        return _clean_json(text, aggressiveness)
    if kind is TextKind.CODE:
        return text
    if aggressiveness is not Aggressiveness.LOW and kind is TextKind.MARKUP:
        text = _clean_page(text, keep_tags=aggressiveness is Aggressiveness.MEDIUM)
    text = _as_displayed(text)
    if not any(fence in text for fence in _FENCES):
        return _clean_lines(text, kind, aggressiveness)
    return "\n".join(_clean_block(block, kind, aggressiveness) for block in fenced_blocks(text))


def readable_text(text: str) -> str:
    """The content as a reader sees it, which is the basis of the quality score: pages without tags, JSON without unnecessary
    escapes, no terminal escapes, no base64.
    """
    kind = kind_of(text)
    if kind is TextKind.JSON:
        return _without_base64(minified(text), '"')
    if kind is TextKind.MARKUP:
        text = without_noise(text, keep_tags=False)
    return _without_base64(_as_displayed(text))


def open_fences(lines: Sequence[str]) -> list[bool]:
    """For each line, whether a code fence is open after it.

    A fence that is never closed extends to the end, because what looks like code is safer left alone.
    """
    result = []
    fence = ""
    for line in lines:
        mark = line.lstrip()[:3]
        if not fence and mark in _FENCES:
            fence = mark
        elif fence and mark == fence and not line.strip().strip(fence[0]):
            fence = ""
        result.append(bool(fence))
    return result


def fenced_blocks(text: str) -> Iterator[list[str]]:
    """The lines of a text in runs: those outside code fences, and each fenced block with its two fence lines."""
    lines = text.split("\n")
    start = 0
    is_inside = False
    for number, is_open in enumerate(open_fences(lines)):
        if is_open and not is_inside and number > start:
            yield lines[start:number]
            start = number
        if is_inside and not is_open:
            yield lines[start : number + 1]
            start = number + 1
        is_inside = is_open
    if start < len(lines):
        yield lines[start:]


def is_fenced(block: list[str]) -> bool:
    return block[0].lstrip()[:3] in _FENCES


def _clean_page(page: str, *, keep_tags: bool) -> str:
    """A page may have fenced code in it, such as a README that begins with HTML: the tags in the code are its content."""
    blocks = (("\n".join(block), is_fenced(block)) for block in fenced_blocks(page))
    return "\n".join(text if fenced else without_noise(text, keep_tags=keep_tags) for text, fenced in blocks)


def _clean_block(block: list[str], kind: TextKind, aggressiveness: Aggressiveness) -> str:
    if not is_fenced(block):
        return _clean_lines("\n".join(block), kind, aggressiveness)
    inner = "\n".join(block[1:-1])
    if _JSON_FENCE.match(block[0].strip()) and kind_of(inner) is TextKind.JSON:
        return "\n".join([block[0], _clean_json(inner, aggressiveness), block[-1]])
    return "\n".join(block)


def _clean_json(text: str, aggressiveness: Aggressiveness) -> str:
    text = minified(text)
    if aggressiveness is Aggressiveness.LOW:
        return text
    if aggressiveness is Aggressiveness.HIGH:
        text = tabulated(text)
    return _without_base64(text, '"')


def _as_displayed(text: str) -> str:
    """The final display of a terminal: no colours, and only the last state of lines that overwrite themselves."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if "\r" not in text:
        return text
    text = text.replace("\r\n", "\n")
    if "\r" not in text:
        return text
    return "\n".join([_last_state(line) if "\r" in line else line for line in text.split("\n")])


def _last_state(line: str) -> str:
    return next((state for state in reversed(line.split("\r")) if state.strip()), "")


def _clean_lines(text: str, kind: TextKind, aggressiveness: Aggressiveness) -> str:
    lines = [line.rstrip() for line in text.split("\n")]
    if aggressiveness is Aggressiveness.LOW:
        return "\n".join(_limit_blank_lines(collapse_repeats(lines), 2))
    lines = _without_padding(lines, text, aggressiveness)
    if "|" in text:
        lines = [_trim_table_row(line) if line.lstrip()[:1] == "|" else line for line in lines]
    if kind is TextKind.LOG:
        lines = _drop_repeated_dates(_collapse_stamped_repeats(lines))
    if "%" in text:
        lines = _collapse_progress(lines)
    return _without_base64("\n".join(_limit_blank_lines(collapse_repeats(lines), 1)))


def _without_padding(lines: list[str], text: str, aggressiveness: Aggressiveness) -> list[str]:
    """Columns two blanks apart (one at `high`), rulers of four characters; indentation is kept."""
    wide, padding, narrow = (
        ("  ", _SPACES_HIGH, " ") if aggressiveness is Aggressiveness.HIGH else ("   ", _SPACES, "  ")
    )
    if wide in text:
        lines = [padding.sub(narrow, line) if wide in line.lstrip() else line for line in lines]
    for ruled, ruler in _RULERS:
        if ruled in text:
            lines = [ruler.sub(ruled[:_RULER_CHARACTERS], line) if ruled in line else line for line in lines]
    return lines


def _without_base64(text: str, between: str | None = None) -> str:
    """Base64 is useless to a model and costs a token every two or three characters.

    It is delimited by white space or, in JSON, by quotes: splitting at `between` finds long pieces cheaply.
    """
    if len(text) < _BASE64_CHARACTERS_MIN or max(map(len, text.split(between)), default=0) < _BASE64_CHARACTERS_MIN:
        return text
    return _BASE64.sub(_base64_marker, text)


def _base64_marker(match: re.Match[str]) -> str:
    data = match[0]
    encoded = any(map(str.isdigit, data)) and any(map(str.isupper, data)) and any(map(str.islower, data))
    return f"[… {len(data)} characters of base64 left out …]" if encoded and data.count("/") * 8 < len(data) else data


def _trim_table_row(line: str) -> str:
    """A table row without padding: `|a|b|`, and `|-|:-|` under the header."""
    cells = [cell.strip() for cell in line.split("|")]
    return "|".join([_trim_table_rule(cell) if cell[:2] in ("--", ":-") else cell for cell in cells])


def _trim_table_rule(cell: str) -> str:
    if cell.strip(":").strip("-"):
        return cell
    return (":" if cell[:1] == ":" else "") + "-" + (":" if cell[-1:] == ":" else "")


def collapse_repeats(lines: list[str]) -> list[str]:
    """Replace lines repeated in a row by one of them with a count."""
    if not any(map(eq, lines, lines[1:])):
        return lines
    output: list[str] = []
    for line, group in groupby(lines):
        run = len(list(group))
        if line and (run - 1) * (len(line) + 1) >= _REPEAT_CHARACTERS_MIN:
            output += [line, f"[… the line above {run} times in all …]"]
        else:
            output += [line] * run
    return output


def _collapse_stamped_repeats(lines: list[str]) -> list[str]:
    """Of log lines that differ only in their time stamp, keep the first, a count and the last stamp."""
    keys = [line[timestamp.end() :] if (timestamp := TIMESTAMP.match(line)) else None for line in lines]
    if not any(map(eq, keys, keys[1:])):
        return lines
    output: list[str] = []
    start = 0
    for key, group in groupby(keys):
        run = len(list(group))
        first, last = lines[start], lines[start + run - 1]
        if key and first[: -len(key)] and (run - 1) * len(first) >= _REPEAT_CHARACTERS_MIN:
            stamp = last[: -len(key)].strip("[]")
            output += [first, f"[… the line above {run} times until {stamp} …]"]
        else:
            output += lines[start : start + run]
        start += run
    return output


def _drop_repeated_dates(lines: list[str]) -> list[str]:
    """Keep the date only where it changes; the lines below keep the time of day."""
    current = ""
    output = []
    for line in lines:
        match = _DATE.match(line)
        if match and match[2] == current:
            line = match[1] + line[match.end() :]
        elif match:
            current = match[2]
        output.append(line)
    return output


def _collapse_progress(lines: list[str]) -> list[str]:
    """Of a progress bar's lines, which differ only in numbers and bar, keep the first and the last."""
    masks = [_BAR.sub(" ", _DIGITS.sub("0", line)) if "%" in line else None for line in lines]
    output: list[str] = []
    start = 0
    for mask, group in groupby(masks):
        run = len(list(group))
        run_lines = lines[start : start + run]
        output += [run_lines[0], run_lines[-1]] if mask and run > 2 else run_lines
        start += run
    return output


def _limit_blank_lines(lines: list[str], blank_max: int) -> list[str]:
    """At most `blank_max` empty lines in a row, none at either end."""
    if "" not in lines:
        return lines
    output: list[str] = []
    blanks = blank_max
    for line in lines:
        blanks = 0 if line else blanks + 1
        if blanks <= blank_max:
            output.append(line)
    while output and not output[-1]:
        output.pop()
    return output
