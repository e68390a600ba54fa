"""A run whose first call takes long can be seen and controlled before that call ends."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance.serving import Served, model, serving
from tests.farebox_process import tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-runs-in-flight")
SLOW = 'hi {"fake": {"delay_ms": 6000}}'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    budget = {"scope": "run", "match": "*", "tokens": 1000}
    with serving(
        tmp_path_factory.mktemp("runs-in-flight"),
        budgets=[budget],
        models=lambda provider: [model(provider.openai_url)],
    ) as running:
        yield running


def test_run_is_visible_and_can_be_paused_during_its_first_call(served: Served) -> None:
    headers = {**tagged("nightly", "long", "draft"), "x-workflow-agent": "writer"}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(served.chat, headers, SLOW, max_tokens=20)
        until(lambda: served.gateway.get("/api/runs/long").status == 200, 5, "the run is there")
        run = served.gateway.get("/api/runs/long").json()
        assert not call.done(), "it was seen before its first call ended"
        assert (run["workflow"], run["agent"], run["state"]) == ("nightly", "writer", "active")
        assert run["tokens"]["reserved"] > 0
        assert run["started_at"] < run["last_at"], "it started with its call, not when it was written"
        assert [step["step"] for step in run["steps"]] == ["draft"]
        assert served.gateway.request("POST", "/api/runs/long/pause", b"").status == 200
        refused = served.chat(headers)
        assert (refused.status, refused.json()["error"]["code"]) == (402, "run_paused")
        assert call.result(30).status == 200
    until(lambda: served.gateway.get("/api/runs/long").json()["calls"] == 1, 10, "the call is counted")
    run = served.gateway.get("/api/runs/long").json()
    assert (run["state"], run["calls"], run["tokens"]["reserved"]) == ("paused", 1, 0)
    assert run["steps"][0]["calls"] == 1
