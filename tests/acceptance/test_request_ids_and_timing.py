"""Every answer has an id to quote and says how long it took; every fault has the same shape."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.acceptance.serving import Served, model, serving

pytestmark = pytest.mark.xdist_group("acceptance-request-ids")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("request-ids"), models=lambda provider: [model(provider.openai_url)]
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/none", 404),
        ("GET", "/none", 404),
        ("POST", "/livez", 405),
        ("GET", "/api/openapi.json", 200),
        ("GET", "/api/settings", 200),
        ("GET", "/api/runs/none", 404),
        ("GET", "/api/none", 404),
        ("POST", "/api/settings", 405),
        ("GET", "/admin/login", 200),
        ("GET", "//v1/models", 400),
        ("OPTIONS", "/v1/models", 405),
    ],
)
def test_every_answer_has_a_request_id_and_server_timing(served: Served, method: str, path: str, status: int) -> None:
    reply = served.gateway.request(method, path, b"" if method == "POST" else None)
    assert reply.status == status, reply.body
    assert reply.headers["x-request-id"]
    assert "dur=" in reply.headers["server-timing"]
    if status >= 400:
        error = reply.json()["error"]
        assert (bool(error["message"]), bool(error["code"]), error["type"]) == (True, True, "invalid_request_error")


@pytest.mark.parametrize(
    "path", ["/api/runs/none", "/v1/none", "/v1//models", "/api/none", "/none", "/api/runs/r/pause"]
)
def test_error_object_names_its_request_id(served: Served, path: str) -> None:
    reply = served.gateway.get(path)
    assert reply.json()["error"]["metadata"]["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("body", [b"{", b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/messages", "/w/wf/v1/responses"])
def test_request_refused_before_it_is_a_call_has_only_a_total_time(served: Served, path: str, body: bytes) -> None:
    reply = served.gateway.request("POST", path, body)
    assert reply.status in (400, 404)
    assert re.fullmatch(r"total;dur=[\d.]+", reply.headers["server-timing"])


def test_request_ids_are_unique(served: Served) -> None:
    ids = {served.gateway.get("/livez").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
