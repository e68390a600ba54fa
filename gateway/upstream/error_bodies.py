"""Error objects in the client's protocol, made from whatever a provider sent as an error.

An object that already has the right shape is passed on unchanged, because clients such as Claude Code match its wording.
HTML pages, plain text, strings and empty bodies become an object with the same meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import orjson

from gateway.upstream.port import ProtocolName
from gateway.wire import sse
from gateway.wire.anthropic_errors import type_of

_MESSAGE_CHARS_MAX: Final = 2_000
_OPENAI_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_TAGS: Final = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^<>]*>", re.IGNORECASE | re.DOTALL)
_PAGE_BYTES_READ_MAX: Final = 4_000  # enough for the title; the worst case, unclosed script tags, takes 15 ms
# How deep to look into nested objects: no server nests its message deeper, and Python's stack is finite.
_LEVELS_MAX: Final = 8
_FIELDS: Final = ("type", "param", "code")
_NONE: Final[Mapping[str, str]] = MappingProxyType({})


def error_body(
    protocol: ProtocolName, status: int, message: str, *, code: str | None = None, fields: Mapping[str, str] = _NONE
) -> bytes:
    """An error object in the client's protocol. `fields`: what OpenAI's object says beside the message, if known."""
    if protocol == "messages":
        return orjson.dumps({"type": "error", "error": {"type": type_of(status), "message": message}})
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code, **fields}})


def convert_error(protocol: ProtocolName, status: int, body: bytes) -> bytes:
    """The provider's error body if it is already in the client's protocol, else an object with the same meaning."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return error_body(protocol, status, text_message(status, body))
    if _is_in_protocol(protocol, value):
        return body
    return error_body(protocol, status, json_message(value) or _standard_message(status), fields=error_fields(value))


def json_message(value: Any, levels: int = _LEVELS_MAX) -> str | None:
    """The message in an error object of any common shape: OpenAI's, vLLM's, FastAPI's, or just a string."""
    if isinstance(value, str):
        return value[:_MESSAGE_CHARS_MAX] or None
    if isinstance(value, dict):
        keys = ("error", "message", "detail", "msg", "errors", "error_message")
        value = [value.get(key) for key in keys]
    if not isinstance(value, list) or not levels:
        return None
    return next((text for item in value if (text := json_message(item, levels - 1))), None)


def error_fields(value: Any) -> dict[str, str]:
    """The type, param and code in a provider's error object: clients tell by them which error it is, and what caused it."""
    error = value.get("error", value) if isinstance(value, Mapping) else None
    if not isinstance(error, Mapping):
        return {}
    return {name: text for name in _FIELDS if isinstance(text := error.get(name), str)}


def text_message(status: int, body: bytes) -> str:
    """A message for an error that came as plain text or as an HTML page."""
    text = " ".join(_TAGS.sub(" ", body[:_PAGE_BYTES_READ_MAX].decode("utf-8", "replace")).split())[:300]
    return f"{_standard_message(status)} It said: {text}" if text else _standard_message(status)


def _is_in_protocol(protocol: ProtocolName, value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("error"), dict):
        return False
    if not isinstance(value["error"].get("message"), str):
        return False
    return (value.get("type") == "error") == (protocol == "messages")


def _standard_message(status: int) -> str:
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    return f"The provider answered {phrase}."


def error_event(protocol: ProtocolName, status: int, message: str) -> bytes:
    """The error as a server-sent event, for a stream that fails after it has begun."""
    if protocol == "responses":
        value = {"type": "error", "code": "server_error", "message": message, "param": None}
        return sse.event(orjson.dumps(value), "error")
    return sse.event(error_body(protocol, status, message), "error" if protocol == "messages" else None)
