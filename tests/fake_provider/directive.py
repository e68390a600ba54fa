"""What the fake provider is told to do with one request, and the three ways to tell it.

    provider.script(status=429, times=2)                          in this process
    {"model": "gpt-4o?status=429&body=html", …}                   in the model's name
    {"messages": [{"content": "… {\\"fake\\": {\\"status\\": 429}}"}]}  in any text of the request, or the header `x-fake`

Later ways beat earlier ones, field by field.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl

UsageKind = Literal["correct", "missing", "zero", "negative", "absurd"]
ErrorBody = Literal["json", "none", "html", "text", "string", "detail"]


@dataclass(frozen=True, slots=True)
class Directive:
    """Everything that can be asked of one answer. The default is a correct answer at full speed.

    `…_after` counts content events of a stream that were sent before the fault; in a buffered answer, bytes of its body.
    """

    # the answer
    text: str | None = None  # exactly this text
    tokens: int | None = None  # this many words of one token each; seeded 5–40 when nothing is said
    echo: bool = False  # repeat the last text of the request
    ignore_max: bool = False  # answer longer than max_tokens allows
    tool: str | None = None  # answer with one call of this tool instead of text
    arguments: str = "{}"
    usage: UsageKind = "correct"
    usage_json: str | None = None  # exactly this usage object
    model: str | None = None  # the model named in the answer
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    # its speed
    delay_ms: int = 0  # before the status line
    first_chunk_delay_ms: int = 0
    chunk_delay_ms: int = 0
    words_per_chunk: int = 1
    # errors and headers
    status: int = 200
    body: ErrorBody = "json"
    message: str | None = None
    code: str | None = None
    error_type: str | None = None
    param: str | None = None
    retry_after: str | None = None
    redirect: str | None = None
    cookie: bool = False
    header_flood: int = 0  # so many extra headers
    header_bytes: int = 0  # one header of this size
    content_type: str | None = None
    content_length: int | None = None  # a wrong one
    # broken answers
    reset: Literal["before_headers", "after_headers"] | None = None
    cut_after: int | None = None  # the connection ends without an end of the answer
    reset_after: int | None = None
    stall_after: int | None = None  # nothing more comes, the connection stays
    garbage_after: int | None = None
    error_after: int | None = None  # an error event in mid-stream
    big_event_bytes: int = 0
    no_done: bool = False
    ignore_stream: bool = False  # a buffered answer to a request for a stream
    crlf: bool = False  # events end with CRLF CRLF
    split_bytes: int = 0  # write the stream in pieces of so many bytes, wherever they fall
    gzip_bomb_bytes: int = 0
    gzip: bool = False  # compressed although nobody asked
    raw: str | None = None  # exactly these bytes (latin-1) instead of an HTTP answer


_FIELDS = {field.name: field for field in dataclasses.fields(Directive)}
_IN_TEXT = re.compile(r'\{\s*"fake"\s*:')


def changed(base: Directive, fields: Mapping[str, Any]) -> Directive:
    """`base` with these fields; strings are read as the field's type, an unknown name is an error of the test."""
    return dataclasses.replace(base, **{name: _typed(name, value) for name, value in fields.items()})


def of_request(base: Directive, headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[Directive, str]:
    """The directive of a request, and its model's name without a directive."""
    model, _, query = str(body.get("model", "")).partition("?")
    directive = changed(base, dict(parse_qsl(query)))
    for text in texts_of(body):
        for match in _IN_TEXT.finditer(text):
            written, _end = json.JSONDecoder().raw_decode(text, match.start())
            directive = changed(directive, written["fake"])
    if "x-fake" in headers:
        directive = changed(directive, json.loads(headers["x-fake"]))
    return directive, model


def texts_of(body: Any) -> list[str]:
    """Every text of a request that a model would read, in order."""
    if isinstance(body, str):
        return [body]
    if isinstance(body, list):
        return [text for item in body for text in texts_of(item)]
    if isinstance(body, Mapping):
        keys = ("system", "instructions", "prompt", "input", "messages", "content", "text", "query", "documents")
        return [text for key in keys if key in body for text in texts_of(body[key])]
    return []


def _typed(name: str, value: Any) -> Any:
    if name not in _FIELDS:
        raise ValueError(f"the fake provider knows no directive {name!r}; it knows {', '.join(_FIELDS)}")
    declared = str(_FIELDS[name].type)
    if not isinstance(value, str):
        return value
    if declared.startswith("int"):
        return int(value)
    if declared.startswith("bool"):
        return value.lower() in ("1", "true", "yes")
    return value
