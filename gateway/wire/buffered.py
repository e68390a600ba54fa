"""What protocols share whose answers always come whole and are not generated text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import BadRequest, GatewayError
from gateway.wire.body import boolean
from gateway.wire.openai_errors import error_body
from gateway.wire.protocol import OutputCounter, Relay, Request, token_count
from policies.pricing import Usage


class BufferedProtocol:
    """The base of these protocols: there is nothing to cap and nothing to relay piece by piece."""

    streams = False
    is_binary = False

    def upstream_body(self, request: Request, output_tokens: int | None, stream: bool) -> dict[str, Any]:
        return dict(request.body)

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        return input_usage(answer.get("usage"))

    def output_text(self, answer: Mapping[str, Any]) -> str:
        return ""

    def relay(self, request: Request, counter: OutputCounter) -> Relay:
        raise NotImplementedError(f"{type(self).__name__} has no streams; `streams` says so.")

    def assemble(self, pieces: bytes) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} has no streams; `streams` says so.")

    def error_body(self, error: GatewayError) -> bytes:
        return error_body(error)


def input_usage(usage: Any) -> Usage | None:
    """Parse a `usage` object that has prompt tokens, or only a total (Jina, vLLM), all of which is input."""
    if not isinstance(usage, dict):
        return None
    tokens = token_count(usage.get("prompt_tokens") or usage.get("total_tokens"))
    return Usage(input_tokens=tokens) if tokens else None


def refuse_stream(body: dict[str, Any]) -> None:
    """Raises `BadRequest` if a stream is requested: the answer would arrive as events, be paid for, and get lost here."""
    if boolean(body, "stream"):
        raise BadRequest.field("stream", "is not possible here: this answer comes whole")


def texts_in(body: Mapping[str, Any], key: str, entries_max: int) -> list[Any]:
    """A field with one text or a list, as a list. Raises `BadRequest`."""
    value = body.get(key)
    if value is None or value == "" or value == []:
        raise BadRequest.field(key, "is missing", "missing_field")
    entries = value if isinstance(value, list) else [value]
    if not isinstance(value, str | list):
        raise BadRequest.field(key, "must be a text or a list")
    if len(entries) > entries_max:
        raise BadRequest.field(key, f"has {len(entries)} entries, more than {entries_max}")
    return entries
