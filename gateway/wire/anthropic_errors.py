"""Errors in Anthropic's format. Its types are a closed list that clients match on, so our own code and metadata are extra fields."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.errors import GatewayError, StreamBroken

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_KNOWN_TYPES: Final = frozenset({*_TYPES.values(), "api_error"})


def error_body(error: GatewayError) -> bytes:
    return orjson.dumps(error_object(error))


def error_object(error: GatewayError) -> dict[str, Any]:
    """The whole object, `{"type": "error", "error": {…}, "request_id"}`. The request id is taken from the metadata."""
    # A provider's error event keeps its own type; the type of our own errors follows from the status.
    is_from_provider = isinstance(error, StreamBroken) and error.type in _KNOWN_TYPES
    kind = error.type if is_from_provider else type_of(error.status)
    body: dict[str, Any] = {"type": kind, "message": error.message, "code": error.code}
    if error.param is not None:
        body["param"] = error.param
    if error.metadata:
        body["metadata"] = error.metadata
    return {"type": "error", "error": body, "request_id": error.metadata.get("request_id")}


def type_of(status: int) -> str:
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
