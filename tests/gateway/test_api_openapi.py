"""The OpenAPI document: complete, valid, and true to what the routes accept and answer."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import schemathesis

from gateway.endpoints.api.openapi import document
from gateway.endpoints.api.table import ROUTES
from tests.api_client import Api

pytest_plugins = ("tests.api_fixtures",)


def test_every_route_is_documented_with_a_unique_operation_id() -> None:
    paths = document()["paths"]
    documented = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert documented == {(route.method, f"/api{route.path}") for route in ROUTES}
    names = [operation["operationId"] for operations in paths.values() for operation in operations.values()]
    assert len(set(names)) == len(names)


def test_document_is_valid_openapi() -> None:
    schemathesis.openapi.from_dict(json.loads(json.dumps(document()))).validate()


def test_every_reference_resolves() -> None:
    whole = document()
    known = whole["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            assert reference is None or reference.removeprefix("#/components/schemas/") in known, reference
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(whole)


REQUESTS: tuple[tuple[str, str, str, Any], ...] = (
    ("GET", "/settings", "/settings", None),
    ("GET", "/settings/history", "/settings/history", None),
    ("PUT", "/settings/{key}", "/settings/orchestration_max_retry_attempts", {"value": 3}),
    ("GET", "/settings/{key}/history", "/settings/orchestration_max_retry_attempts/history", None),
    ("PUT", "/workflows/{workflow}", "/workflows/w", {"steps": [{"id": "a", "budget": {"usd": 0.1}}]}),
    ("GET", "/workflows", "/workflows", None),
    (
        "POST",
        "/runs",
        "/runs",
        {"workflow": "nightly", "run": "r1", "budget_usd": 0.2, "steps": [{"id": "a", "prompt": "x"}]},
    ),
    ("GET", "/runs/{run}", "/runs/r1", None),
    ("GET", "/runs/{run}/calls", "/runs/r1/calls", None),
    ("GET", "/runs", "/runs", None),
    ("POST", "/runs/{run}/reset", "/runs/r1/reset", None),
    ("POST", "/runs/{run}/complete", "/runs/r1/complete", None),
    ("POST", "/budgets", "/budgets", {"scope": "agent", "match": "ada", "usd": 1, "window": "day"}),
    ("GET", "/budgets", "/budgets", None),
    ("POST", "/classify", "/classify", {"prompt": "Summarize this."}),
    ("POST", "/allocate", "/allocate", {"steps": [{"id": "a", "intent": "send"}]}),
    ("GET", "/usage", "/usage?group_by=run", None),
    ("GET", "/workflows/{workflow}/suggestions", "/workflows/nightly/suggestions", None),
    ("PUT", "/agents/{agent}/intensity", "/agents/ada/intensity", {"creation": 3}),
    ("GET", "/agents", "/agents", None),
    ("GET", "/doctor", "/doctor", None),
    ("POST", "/reconcile", "/reconcile", None),
    ("GET", "/audit", "/audit", None),
    ("POST", "/keys", "/keys", {"name": "ops", "admin": True, "limits": {"usd": 1.5}}),
)


async def test_requests_and_answers_match_their_documented_schemas(api: Api) -> None:
    whole = await api.get("/api/openapi.json")
    for run in ("r1", "r2"):
        await api.chat(run)
    for method, path, url, body in REQUESTS:
        answer = await (
            api.post(f"/api{url}", body)
            if method == "POST"
            else api.put(f"/api{url}", body)
            if body
            else api.get(f"/api{url}")
        )
        schema = whole["paths"][f"/api{path}"][method.lower()]["responses"]["200"]["content"]["application/json"][
            "schema"
        ]
        jsonschema.validate(answer, {**schema, "components": whole["components"]})
        if body is not None:
            asked = whole["paths"][f"/api{path}"][method.lower()]["requestBody"]["content"]["application/json"][
                "schema"
            ]
            jsonschema.validate(body, {**asked, "components": whole["components"]})
    # The last request created the first key, so requests without one are refused from here on.
    status, error = await api.refused("GET", "/api/runs")
    schema = whole["components"]["schemas"]["ErrorBody"]
    jsonschema.validate({"error": error}, {**schema, "components": whole["components"]})
    assert status == 401
