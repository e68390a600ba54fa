"""The control API as an ASGI application: authenticates, validates by the route's types, calls the handler, and reports errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import orjson
import structlog
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute

from gateway.config.faults import counted_rightly
from gateway.endpoints.api.openapi import document
from gateway.endpoints.api.route import ApiRequest, ApiServices, Route
from gateway.endpoints.api.schema import PATTERNS_IN_WORDS
from gateway.endpoints.api.table import ROUTES
from gateway.endpoints.error_answers import error_response
from gateway.errors import BadRequest, GatewayError, LedgerOutage
from gateway.ledger.port import LedgerUnavailable
from gateway.store.database import StoreUnavailable
from gateway.store.settings import SettingsConflict
from policies.errors import IntentClassificationError
from policies.settings import SettingError

# A declaration of hundreds of steps with their prompts fits; nothing of the control API is larger.
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
_NAME_CHARACTERS_MAX: Final = 512
# Fields of answers that no request can set.
_READ_ONLY: Final = frozenset({"id", "workflow", "project", "origin", "accounts", "updated_at", "updated_by"})
_log = structlog.get_logger(__name__)


class Endpoint:
    """One route, bound to the parts that it works with."""

    def __init__(self, route: Route, services: ApiServices) -> None:
        self.route = route
        self._services = services

    @cached_property
    def _body_adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.route.body)

    @cached_property
    def _answer_adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.route.answer)

    async def serve(self, request: Request) -> Response:
        request_id = self._services.parts.ids.new()
        try:
            response = await self._answer(request, request_id)
        except Exception as error:  # noqa: BLE001 - the last net: every error has one shape, and bugs are logged
            fault = as_gateway_error(error, request_id)
            fault.metadata.setdefault("request_id", request_id)
            response = error_response(fault)
        response.headers["x-request-id"] = request_id
        response.headers["cache-control"] = "no-store"
        return response

    async def _answer(self, request: Request, request_id: str) -> Response:
        # Authenticate first: a stranger learns nothing about what is wrong with the request.
        actor = self._services.access.check(request, self.route.role)
        _check_names(request.path_params)
        query = self.route.query.model_validate(_query(request))
        body = await self._read_body(request, {**request.path_params, "project": query.project})
        api_request = ApiRequest(self._services, actor, request_id, request.path_params, query, body, request.headers)
        answer = await self.route.handle(api_request)
        if isinstance(answer, Response):
            return answer
        content = self._answer_adapter.dump_json(answer, by_alias=True, exclude_none=self.route.omits_null)
        return Response(content, media_type="application/json")

    async def _read_body(self, request: Request, names: Mapping[str, str]) -> Any:
        raw = await _read(request)
        if not raw.strip() and not (self.route.has_body and self.route.body_required):
            raw = b"{}"
        body = parsed(raw)
        if self.route.method == "PUT":
            body = self._without_read_only(body, names)
        return self._body_adapter.validate_python(body)

    def _without_read_only(self, body: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        """Lets a client edit what GET returned and send it back. Fields that are also in the path or the query must agree with them."""
        answer_fields = {field.name for field in dataclasses.fields(self.route.answer)}
        read_only = (answer_fields & _READ_ONLY) - self.route.body.model_fields.keys()
        for name in read_only & names.keys() & body.keys():
            if body[name] != names[name]:
                raise BadRequest.field(name, f"is not {names[name]!r}, which the request is for")
        return {name: value for name, value in body.items() if name not in read_only}


def api_routes(services: ApiServices) -> list[BaseRoute]:
    """To be mounted under /api."""

    async def openapi(request: Request) -> Response:
        try:
            services.access.check(request, "viewer")
        except GatewayError as error:
            return error_response(error)
        return Response(orjson.dumps(document()), media_type="application/json")

    return [
        StarletteRoute("/openapi.json", openapi, methods=["GET"]),
        *(
            StarletteRoute(_converted(route.path), Endpoint(route, services).serve, methods=[route.method])
            for route in ROUTES
        ),
    ]


def _converted(path: str) -> str:
    """The route's path for Starlette. Names may contain slashes, so every parameter matches several path segments."""
    return path.replace("}", ":path}")


def as_gateway_error(error: Exception, request_id: str) -> GatewayError:
    """The error that the caller gets for an exception. Unexpected exceptions are logged."""
    match error:
        case GatewayError():
            return error
        case ValidationError():
            return _invalid(error)
        case SettingError():
            return BadRequest(str(error), code="invalid_value", param="value")
        case SettingsConflict():
            return BadRequest(str(error), code="conflicting_settings", param="value")
        case IntentClassificationError():
            return BadRequest(str(error), code="invalid_value", param="intent")
        case LedgerUnavailable():
            return LedgerOutage(f"The ledger is out of reach: {error}")
        case StoreUnavailable():
            return GatewayError(
                str(error), status=503, code="store_unavailable", type="store_unavailable", headers={"retry-after": "1"}
            )
    _log.error("control_api_failed", request_id=request_id, exc_info=error)
    return GatewayError(f"Something broke inside the gateway; its log has request {request_id}.")


def parsed(raw: bytes) -> dict[str, Any]:
    """Raises `BadRequest` for anything but one JSON object in which no key stands twice."""
    try:
        orjson.loads(raw)  # strict: no NaN, no depth that would break the second reader
        body = json.loads(raw, object_pairs_hook=_object_without_duplicates)
    except _DuplicateKey as duplicate:
        raise BadRequest.field(duplicate.key[:100], "stands in an object twice", "duplicate_key") from None
    except (orjson.JSONDecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    return body


class _DuplicateKey(Exception):
    def __init__(self, key: str) -> None:
        self.key = key


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise _DuplicateKey(key)
        fields[key] = value
    return fields


async def _read(request: Request) -> bytes:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            raise BadRequest.too_large(BODY_BYTES_MAX)
    return bytes(raw)


def _check_names(names: Mapping[str, str]) -> None:
    """Refuse impossible names here, because the engines of the store react to them differently."""
    for value in names.values():
        if "\x00" in value or len(value) > _NAME_CHARACTERS_MAX:
            raise BadRequest("There is nothing of that name.", status=404, code="not_found")


def _query(request: Request) -> Mapping[str, str]:
    parameters: dict[str, str] = {}
    for key, value in request.query_params.multi_items():
        if key in parameters:
            raise BadRequest.field(key[:100], "stands in the query twice", "duplicate_key")
        parameters[key] = value
    return parameters


def _invalid(error: ValidationError) -> BadRequest:
    """The error for a validation failure: `param` is the first field at fault, the message has up to four of them."""
    errors = counted_rightly(error.errors())
    faults = faults_of(error)
    param, message = faults[0]
    further_faults = "".join(f" {path or 'body'}: {problem}." for path, problem in faults[1:4])
    code = "missing_field" if errors[0]["type"] == "missing" else "invalid_value"
    return BadRequest(f"{param or 'body'}: {message}.{further_faults}", code=code, param=param or None)


def faults_of(error: ValidationError) -> list[tuple[str, str]]:
    """(field, fault) pairs. The field is empty if the fault is about the whole body."""
    return list(
        dict.fromkeys(
            (".".join(_field(fault_error)), _message(fault_error)) for fault_error in counted_rightly(error.errors())
        )
    )


_MESSAGES: Final = {
    "extra_forbidden": "is not a field",
    "missing": "is missing",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "tuple_type": "must be a list",
    "too_short": "must have {min_length} or more items",
    "too_long": "must have {max_length} or fewer items, not {actual_length}",
}


def _field(fault: Any) -> list[str]:
    """The path of a fault in the body, without the names of union members that pydantic puts in between."""
    path = fault["loc"]
    unknown = path[-1:] if fault["type"] == "extra_forbidden" else ()
    known_path = path[:-1] if unknown else path
    return [str(part) for part in (*(path_part for path_part in known_path if not _is_type(path_part)), *unknown)]


def _is_type(part: int | str) -> bool:
    return isinstance(part, str) and (part[:1].isupper() or not part.isidentifier())


def _message(fault: Any) -> str:
    context = fault.get("ctx", {})
    pattern = context.get("pattern")
    if pattern in PATTERNS_IN_WORDS:
        return f"must be {PATTERNS_IN_WORDS[pattern]}"
    if fault["type"] in _MESSAGES:
        return _MESSAGES[fault["type"]].format(**context)
    return str(fault["msg"]).removeprefix("Value error, ").rstrip(".")
