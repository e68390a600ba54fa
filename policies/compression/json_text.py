"""JSON as text: minified without changing a digit, and arrays of similar records as tables.

Numbers, the order of keys and repeated keys survive, because the text is not parsed and written again: `json` would turn
`0.00005` into `5e-05` and keep only the last of two equal keys.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

_ESCAPED = re.compile(r"\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|[0-9a-fA-F]{4})")
_FLOAT_MARK: Final = "\x00float:"
_FLOAT_QUOTED = re.compile(r'"\\u0000float:([^"]*)"')
_ROWS_MIN = 3
_TABLE_KEYS = (("columns", "rows"), ("every", "columns", "rows"))


class _NotLossless(ValueError):
    """Converting this JSON to Python values would lose something."""


def looks_like_json(text: str) -> bool:
    """Whether the whole text is a JSON object or array. NaN and Infinity are not JSON."""
    start = text.lstrip()[:1]
    if not start or start not in "{[":
        return False
    return text.rstrip()[-1:] in "}]" and _parses(text)


def minified(text: str) -> str:
    """Valid JSON without insignificant white space and unnecessary escapes.

    Valid JSON contains no raw control characters. So two of them stand in for escaped backslashes and quotes while the text
    is split at the quotes that delimit strings, and every other piece is then outside of strings. Linear time.
    """
    pieces = text.replace("\\\\", "\x00").replace('\\"', "\x01").split('"')
    pieces[::2] = ["".join(piece.split()) for piece in pieces[::2]]
    joined = '"'.join(pieces)
    if "\\u" in joined:
        joined = _ESCAPED.sub(_unescaped, joined)
    return joined.replace("\x01", '\\"').replace("\x00", "\\\\")


def tabulated(text: str) -> str:
    """Minified JSON in which arrays of three or more records with the same keys name each key only once.

    `[{"a":1,"b":2,"c":0}, …]` becomes `{"every":{"c":0},"columns":["a","b"],"rows":[[1,2], …]}`, where `every` has what all
    records have in common, if anything. The text is returned unchanged if nothing is gained or parsing it would lose
    something (a repeated key).
    """
    if _FLOAT_MARK[1:] in text:  # it could be mistaken for one of our own marks
        return text
    try:
        value = json.loads(text, parse_float=_marked_float, object_pairs_hook=_without_repeats)
        written = json.dumps(_table(value), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return text
    unquoted = _FLOAT_QUOTED.sub(r"\1", written)
    return unquoted if len(unquoted) < len(text) and not _has_lone_surrogate(unquoted) else text


def _parses(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unescaped(escape: re.Match[str]) -> str:
    """The character, unless it must stay escaped: controls, quotes, backslashes, lone surrogates, unusual line ends."""
    raw = escape[0]
    if len(raw) == 12:
        high, low = int(raw[2:6], 16) - 0xD800, int(raw[8:], 16) - 0xDC00
        return chr(0x10000 + (high << 10) + low)
    code = int(raw[2:], 16)
    is_plain = code >= 0xA0 and not 0xD800 <= code <= 0xDFFF and code not in (0x2028, 0x2029, 0xFEFF)
    printable = 0x20 <= code < 0x7F and code not in (0x22, 0x5C)
    return chr(code) if is_plain or printable else raw


def _marked_float(digits: str) -> str:
    return _FLOAT_MARK + digits


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _NotLossless("a key occurs twice")
    return record


def _table(value: Any) -> Any:
    if isinstance(value, dict):
        if tuple(value) in _TABLE_KEYS:  # already a table, perhaps ours: its rows stay rows
            return value
        return {key: _table(inner) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    if not _is_uniform(value):
        return [_table(inner) for inner in value]
    common = _common(value)
    columns = [key for key in value[0] if key not in common]
    rows = [[_table(record[key]) for key in columns] for record in value]
    every = {"every": {key: _table(inner) for key, inner in common.items()}} if common else {}
    return {**every, "columns": columns, "rows": rows}


def _common(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The values that all records share. Only text and null: `1`, `1.0` and `true` are equal in Python but differ in JSON."""
    first = records[0]
    return {
        key: value
        for key, value in first.items()
        if isinstance(value, str | None) and all(record[key] == value for record in records)
    }


def _is_uniform(records: Sequence[Any]) -> bool:
    if len(records) < _ROWS_MIN or not isinstance(records[0], dict) or len(records[0]) < 2:
        return False
    keys = tuple(records[0])
    return keys not in _TABLE_KEYS and all(isinstance(record, dict) and tuple(record) == keys for record in records)


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
