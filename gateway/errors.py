"""The errors of a call, as reported to the client.

GatewayError
├── BadRequest              400, and 404, 408, 411, 413, 415 by its constructors below
├── AuthenticationFailed    401
├── PermissionDenied        403
├── BudgetRefusal           402 (the budget does not reset) or 429 (it resets, or only concurrent calls are in the way)
├── Overloaded              429, 503: too many calls at once
├── KeysUnknown             503: the store has not been reached since the start
├── LedgerOutage            503
├── OutboxFull              503
├── UpstreamFailure         502, 504
└── StreamBroken            after the first byte: becomes an error event
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class GatewayError(Exception):
    status = 500
    type = "internal_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        type: str | None = None,
        param: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status or self.status
        self.code = code or self.code
        self.type = type or self.type
        self.param = param
        self.metadata = dict(metadata or {})
        self.headers = dict(headers or {})


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"

    @classmethod
    def field(cls, param: str, message: str, code: str = "invalid_value") -> BadRequest:
        return cls(f"{param}: {message}", code=code, param=param)

    @classmethod
    def header(cls, name: str, message: str) -> BadRequest:
        return cls(f"Header {name}: {message}", code="invalid_header", param=name)

    @classmethod
    def too_large(cls, bytes_max: int) -> BadRequest:
        return cls(f"The body is larger than {bytes_max} bytes.", status=413, code="request_too_large")

    @classmethod
    def too_deep(cls) -> BadRequest:
        return cls("The body is nested too deeply.", code="invalid_json")


class ModelNotFound(BadRequest):
    status = 404
    code = "model_not_found"


class AuthenticationFailed(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class KeysUnknown(GatewayError):
    status = 503
    type = "store_unavailable"
    code = "store_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The store has not been reached since the gateway started, so no API key is known.",
            headers={"retry-after": "1"},
        )


class PermissionDenied(GatewayError):
    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class BudgetRefusal(GatewayError):
    status = 402
    type = "budget_exceeded"
    code = "budget_exceeded"


class Overloaded(GatewayError):
    status = 429
    type = "rate_limit_exceeded"
    code = "too_many_concurrent_requests"


class LedgerOutage(GatewayError):
    status = 503
    type = "ledger_unavailable"
    code = "ledger_unavailable"

    def __init__(self, message: str = "The budget ledger is out of reach, and this call's budget is enforced.") -> None:
        super().__init__(message, headers={"retry-after": "1"})


class OutboxFull(GatewayError):
    status = 503
    type = "outbox_full"
    code = "outbox_full"

    def __init__(self) -> None:
        super().__init__(
            "No more usage can be recorded until the store is back, and this call's budget is enforced.",
            headers={"retry-after": "5"},
        )


class UpstreamFailure(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_error"


class StreamBroken(GatewayError):
    status = 502
    type = "upstream_error"
    code = "upstream_broken"


def stopping() -> GatewayError:
    """For calls that are still in flight when a stopping gateway has waited as long as it may."""
    return Overloaded(
        "The gateway is stopping; another one, or this one in a moment, takes the call.",
        status=503,
        type="upstream_error",
        code="gateway_stopping",
        headers={"retry-after": "1"},
    )
