"""The OpenAPI 3.1 document, generated from the table of routes and their types."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from gateway import __version__
from gateway.endpoints.api.route import Route
from gateway.endpoints.api.table import ROUTES

_TEMPLATE: Final = "#/components/schemas/{model}"
_PARAMETER: Final = re.compile(r"{(\w+)}")
_CSV: Final = "text/csv"


@dataclass(frozen=True, slots=True)
class ErrorObject:
    message: str
    type: str
    code: str
    param: str | None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The body of every answer with a status of 400 or above."""

    error: ErrorObject


@cache
def document() -> dict[str, Any]:
    schemas, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(f"/api{route.path}", {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Farebox control API", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"header": []}],
    }


def _schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """The schema of each (route, mode): its body is validated, its answer serialised. And what these schemas refer to."""
    inputs: list[Any] = [(ErrorBody, "serialization", TypeAdapter(ErrorBody))]
    for route in ROUTES:
        if route.has_body:
            inputs.append((route, "validation", TypeAdapter(route.body)))
        if route.answer is not None:
            inputs.append((route, "serialization", TypeAdapter(route.answer)))
    schemas, definitions = TypeAdapter.json_schemas(inputs, ref_template=_TEMPLATE, schema_generator=GenerateJsonSchema)
    return dict(schemas), dict(definitions)


def _operation(route: Route, schemas: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": schemas.get((route, "serialization"), {})}}
    if route.csv:
        content[_CSV] = {"schema": {"type": "string"}}
    errors = {
        "description": "What was wrong.",
        "content": {"application/json": {"schema": schemas[ErrorBody, "serialization"]}},
    }
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "tags": [route.path.split("/")[1]],
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": {"200": {"description": "Done.", "content": content}, "default": errors},
        "x-role": route.role,
    }
    if route.has_body:
        body = {"application/json": {"schema": schemas[route, "validation"]}}
        operation["requestBody"] = {"required": route.body_required, "content": body}
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in _PARAMETER.findall(route.path)]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    schema = route.query.model_json_schema()
    inner = schema.get("$defs", {})
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _resolved(field, inner)}
        for name, field in schema["properties"].items()
    ]


def _resolved(schema: Any, definitions: dict[str, Any]) -> Any:
    """A query parameter's schema with references inlined, and without null, which stands for leaving it out."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        if "anyOf" in schema:
            alternatives = [alternative for alternative in schema["anyOf"] if alternative != {"type": "null"}]
            if len(alternatives) == 1:
                other_keywords = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
                return _resolved(other_keywords | alternatives[0], definitions)
        return {key: _resolved(value, definitions) for key, value in schema.items() if key != "title"}
    return [_resolved(item, definitions) for item in schema] if isinstance(schema, list) else schema
