"""Schemathesis against the control API of a running gateway: never a 5xx, and every answer conforms to the document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.endpoints.api.table import ROUTES
from tests.browser.conftest import CONFIG
from tests.farebox_process import FareboxProcess, running_farebox

ADMIN_KEY = "an-admin-key-that-stays"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# Each example is a request over a real socket; some thousand are sent in all.
SETTINGS = settings(
    max_examples=10,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxProcess]:
    # With an admin key from the start: otherwise, creating the first key would end local mode.
    environment = {"FAREBOX_ADMIN_KEY": ADMIN_KEY}
    with running_farebox(tmp_path_factory.mktemp("fuzzed"), CONFIG, environment=environment) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def schema(gateway: FareboxProcess) -> schemathesis.BaseSchema:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return schemathesis.openapi.from_url(f"{gateway.url}/api/openapi.json", headers=headers)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("method", "path"), [(route.method, route.path) for route in ROUTES])
def test_fuzzed_requests_get_answers_that_conform_to_the_openapi_document(
    schema: schemathesis.BaseSchema, gateway: FareboxProcess, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schema[f"/api{path}"][method]
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}

    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(headers=headers, checks=CHECKS)

    ask()
