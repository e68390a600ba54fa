"""Turns LiteLLM's exceptions into what they stand for: an error answer from the provider, or no answer at all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from gateway.upstream.answer_headers import answer_headers
from gateway.upstream.credentials import redact
from gateway.upstream.error_bodies import error_body, error_fields, json_message, text_message
from gateway.upstream.port import (
    Deployment,
    ProtocolName,
    UpstreamAnswer,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)

# The message for a stream that ended without a finish reason; see litellm_loading.py.
CUT_STREAM_MESSAGE: Final = "its stream ended in the middle of the answer."
_MESSAGE_CHARS_MAX: Final = 1_000
# "litellm.BadRequestError: BadRequestError: AnthropicException - {…}": class names mean nothing to a client.
_PREFIXES: Final = re.compile(r"^(?:(?:litellm\.)?(?:Timeout )?\w*(?:Error|Exception|Timeout)\s*(?::|-)\s*)+")
# LiteLLM's advice is meant for its own callers, and mentions a field that our clients may not send.
_DROPPING: Final = re.compile(
    r"\s*To drop (?:these|it from the call|unsupported params),? set `litellm\.drop_params ?= ?True`.*", re.DOTALL
)
# What LiteLLM appends for its own users, and the paths of its modules.
_APPENDED: Final = re.compile(r"\.? File an issue if litellm error - \S+|(?<=\S) Original exception: .*", re.DOTALL)
_MODULES: Final = re.compile(r"\blitellm(?:\.\w+)*\.(?=\w)")
# What LiteLLM raises if it does not support an endpoint for a provider: nothing was sent, and retrying will not help.
_UNSUPPORTED: Final = re.compile(r"unsupported provider|unable to map the custom llm provider", re.IGNORECASE)
_SUFFIXES: Final = re.compile(r"\.? Handle with `litellm\.\w+`\.?\s*$")
_ADDRESSES: Final = re.compile(r"https?://[^\s'\"<>)]+")
_UNREACHED: Final = frozenset({"ConnectError", "ConnectTimeout", "ConnectionRefusedError", "gaierror"})
# The loss of an established connection, which LiteLLM's transport reports as a failed connect as well.
_DISCONNECTED: Final = frozenset(
    {"ClientOSError", "ServerDisconnectedError", "ClientConnectionResetError", "ConnectionResetError"}
)
_CUT: Final = frozenset({"ClientPayloadError", "TransferEncodingError", "ContentLengthError"})


def answer_of(
    error: Exception, deployment: Deployment, protocol: ProtocolName, secrets: Iterable[str], *, succeeded: bool = False
) -> UpstreamAnswer:
    """The error answer that this exception stands for. Raises `UpstreamError` if there was no answer.

    `succeeded`: the provider answered, but LiteLLM could not read it. A retry would be billed as well.
    """
    if succeeded:
        raise failure_of(error, secrets, bytes_received=True)
    status = _status(error)
    headers = _headers(error)
    # LiteLLM also gives a status to faults without any answer: 408 to its own timeouts, 500 to everything else.
    if status is None or (headers is None and status in (408, 500)):
        if not _UNSUPPORTED.search(str(error)):
            raise failure_of(error, secrets)
        message = f"{deployment.name!r} cannot be asked this: its provider {deployment.provider!r} has no {protocol}."
        body = error_body(protocol, 400, message, code="unsupported_endpoint")
        return UpstreamAnswer(400, {"content-type": "application/json"}, deployment, "litellm", body=body)
    message, fields = _message(error, status)
    fields = {name: redact(text, secrets) for name, text in fields.items()}
    body = error_body(protocol, status, cleaned_message(message, secrets), fields=fields)
    forwarded = answer_headers((headers or {}).items())
    forwarded["content-type"] = "application/json"
    return UpstreamAnswer(status, forwarded, deployment, "litellm", body=body)


def failure_of(error: Exception, secrets: Iterable[str], *, bytes_received: bool = False) -> UpstreamError:
    """The `UpstreamError` for a call that got no answer, or whose answer broke off."""
    kinds = {type(item).__name__ for item in _chain(error)}
    received = bytes_received or bool(_CUT & kinds) or "payload is not completed" in str(error)
    if not received and _is_unreachable(kinds):
        return UpstreamUnreachable("The provider could not be reached.")
    if any("Timeout" in kind for kind in kinds):
        return UpstreamTimeout("The provider did not answer in time.", bytes_received=received)
    return UpstreamBroken(f"The provider broke off: {cleaned_message(str(error), secrets)}", bytes_received=received)


def _is_unreachable(kinds: set[str]) -> bool:
    if any(kind.startswith("ClientConnector") for kind in kinds):
        return True
    return bool(_UNREACHED & kinds) and not _DISCONNECTED & kinds


def cleaned_message(text: str, secrets: Iterable[str]) -> str:
    """A message without class names, tracebacks, addresses and secrets."""
    text = _PREFIXES.sub("", text).partition("Traceback (most recent call last)")[0]
    text = _APPENDED.sub("", text)
    text = _DROPPING.sub(
        r" The gateway's `litellm_settings.drop_params` would leave it out.", _SUFFIXES.sub("", text)
    ).strip()
    text = _ADDRESSES.sub("(address)", redact(_MODULES.sub("", text), secrets))
    return text[:_MESSAGE_CHARS_MAX] or "The provider gave no reason."


def _status(error: Exception) -> int | None:
    """The provider's status. LiteLLM's own exceptions change some (529 to 500), so the innermost cause counts."""
    provider_status: int | None = None
    for item in _chain(error):
        status = getattr(item, "status_code", None)
        if isinstance(status, str) and status.isdigit():
            status = int(status)
        if type(status) is int and 400 <= status <= 599:
            provider_status = status
    return provider_status


def _headers(error: Exception) -> dict[bytes, bytes] | None:
    """The headers of the provider's error answer; None if there was no answer."""
    headers = getattr(error, "litellm_response_headers", None) or getattr(
        getattr(error, "response", None), "headers", None
    )
    if not isinstance(headers, Mapping) or not headers:
        return None
    return {
        str(name).encode("latin-1", "replace"): str(value).encode("latin-1", "replace")
        for name, value in headers.items()
    }


def _message(error: Exception, status: int) -> tuple[str, dict[str, str]]:
    body = getattr(error, "body", None)
    if isinstance(body, Mapping) and (message := json_message(dict(body))):
        return message, error_fields(body)
    text = _PREFIXES.sub("", str(getattr(error, "message", None) or error)).strip()
    text = _decoded(text)
    if text.startswith("<"):
        return text_message(status, text.encode()), {}
    value = _embedded(text)
    return json_message(value) or text, error_fields(value)


def _decoded(text: str) -> str:
    """Some of LiteLLM's exceptions hold a provider's body as the repr of its bytes."""
    if not text.startswith(("b'", 'b"')):
        return text
    try:
        return str(ast.literal_eval(text).decode("utf-8", "replace"))
    except (ValueError, SyntaxError, AttributeError):
        return text


def _embedded(text: str) -> Any:
    """The provider's error object, which many exceptions contain as JSON or as a Python repr; None without one."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end <= start:
        return None
    literal = text[start : end + 1]
    try:
        return orjson.loads(literal)
    except orjson.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _chain(error: BaseException) -> Iterator[Any]:
    seen_ids: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen_ids:
        seen_ids.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
