"""Errors in OpenAI's format, which most clients turn into typed exceptions."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.errors import GatewayError, StreamBroken


def error_body(error: GatewayError) -> bytes:
    return orjson.dumps({"error": error_object(error)})


def error_object(error: GatewayError) -> dict[str, Any]:
    body: dict[str, Any] = {"message": error.message, "type": error.type, "code": error.code, "param": error.param}
    if error.metadata:
        body["metadata"] = error.metadata
    return body


def upstream_event_error(error: Any) -> StreamBroken:
    """A provider's error event in the middle of a stream, with its own message, code and type."""
    if not isinstance(error, dict):
        return StreamBroken(str(error)[:2000], code="upstream_error")
    return StreamBroken(
        str(error.get("message") or "The provider reported an error.")[:2000],
        code=str(error.get("code") or "upstream_error")[:200],
        type=str(error.get("type") or "upstream_error")[:200],
    )
