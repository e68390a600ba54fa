"""API keys on the running gateway: shown once, kept as digests, refused at once when revoked, and never repeated by an error."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import Served, serving, store_rows
from tests.farebox_process import Reply, tagged
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("acceptance-keys")
ADMIN = "an-admin-key-of-the-environment"
SECRETS_SEEN: list[str] = []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("keys")
    budgets = [{"scope": "key", "match": "metered", "requests": 2, "window": "total"}]
    with serving(
        folder, budgets=budgets, server={"project_concurrency_max": 2}, environment={"FAREBOX_ADMIN_KEY": ADMIN}
    ) as running:
        # An admin key closes the models too, as LiteLLM's master key does.
        assert running.chat().status == 401
        assert running.gateway.get("/v1/models").status == 401
        make(running, "first")
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def api(served: Served, method: str, path: str, body: Any = None, key: str = ADMIN) -> Reply:
    return served.gateway.request(method, f"/api{path}", body, bearer(key))


def make(served: Served, name: str, **fields: Any) -> dict[str, Any]:
    reply = api(served, "POST", "/keys", {"name": name, **fields})
    assert reply.status in (200, 201), reply.body
    created: dict[str, Any] = reply.json()
    SECRETS_SEEN.append(created["key"])
    return created


def call(served: Served, key: str | None, **fields: Any) -> Reply:
    return served.chat(bearer(key) if key else None, max_tokens=16, **fields)


def test_anonymous_calls_are_refused_once_keys_exist(served: Served) -> None:
    reply = call(served, None)
    assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    assert served.gateway.get("/v1/models").status == 401
    assert served.seen() == 0


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/fake", "/v1/models/none"])
def test_head_of_models_equals_get_without_the_body(served: Served, path: str) -> None:
    key = bearer(make(served, f"head-{path.replace('/', '-')}")["key"])
    for headers in (key, {}):
        whole, head = (served.gateway.request(method, path, headers=headers) for method in ("GET", "HEAD"))
        assert (head.status, head.body) == (whole.status, b"")
        for name in ("content-type", "content-length"):
            assert head.headers[name] == whole.headers[name]


def test_revoking_the_last_key_does_not_restore_local_mode(tmp_path: Path) -> None:
    """Whoever creates a key wants to keep people out: local mode never comes back, even if the key is lost."""
    with serving(tmp_path) as running:
        assert running.chat().status == 200
        created = running.gateway.request("POST", "/api/keys", {"name": "only", "role": "admin"}).json()
        assert api(running, "DELETE", f"/keys/{created['id']}", key=created["key"]).status == 200
        for restarts in (False, True):
            if restarts:
                running.gateway.stop()
                running.gateway.start()
            for key in (None, created["key"]):
                assert running.chat(bearer(key) if key else None).status == 401
                assert running.gateway.get("/api/keys", bearer(key) if key else None).status == 401
                assert running.gateway.get("/v1/models", bearer(key) if key else None).status == 401


def test_key_is_shown_only_when_created_and_never_forwarded(served: Served) -> None:
    created = make(served, "caller")
    assert call(served, created["key"]).status == 200
    assert served.last.credential == "upstream-key", "the caller's own key is not forwarded"
    shown = api(served, "GET", f"/keys/{created['id']}").body + api(served, "GET", "/keys").body
    assert created["key"].encode() not in shown
    assert created["prefix"].encode() in shown
    for header in ("x-api-key", "api-key"):
        assert served.chat({header: created["key"]}, max_tokens=16).status == 200


def test_revoked_key_is_refused_and_not_repeated_in_the_error(served: Served) -> None:
    created = make(served, "doomed")
    assert call(served, created["key"]).status == 200
    assert api(served, "DELETE", f"/keys/{created['id']}").status == 200
    until(lambda: call(served, created["key"]).status == 401, 5, "the key is refused")
    reply = call(served, created["key"])
    assert created["key"].encode() not in reply.body
    assert created["prefix"].encode() not in reply.body


def test_expired_key_is_refused(served: Served) -> None:
    created = make(served, "short", expires_in_days=1.2 / 86_400)
    assert call(served, created["key"]).status == 200
    time.sleep(1.3)
    assert call(served, created["key"]).status == 401


STRANGE = [
    "",
    "x",
    "sk-1234",
    "fb_" + "A" * 43,
    "' OR 1=1 --",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "*)(uid=*",
    "redis.call('flushall')",
    "%00",
    "é" * 50,
    "a" * 20_000,
]


@pytest.mark.parametrize("key", STRANGE, ids=range(len(STRANGE)))
def test_malformed_key_is_refused_and_not_repeated_in_the_error(served: Served, key: str) -> None:
    sent = key.encode().decode("latin-1")
    reply = call(served, sent) if key else served.chat({"authorization": "Bearer"}, max_tokens=16)
    assert reply.status == 401, reply.body
    if len(key) > 6:
        assert key.encode() not in reply.body
    basic = {"authorization": "Basic " + base64.b64encode(b"a:b").decode()}
    assert served.chat(basic).status == 401
    assert served.seen() == 0


def test_caller_viewer_and_admin_keys_reach_only_their_own_endpoints(served: Served) -> None:
    caller = make(served, "calls")["key"]
    admin = make(served, "administers", admin=True)["key"]
    viewer = make(served, "looks", role="viewer")["key"]
    for path in ("/settings", "/keys", "/runs", "/usage?group_by=step"):
        assert api(served, "GET", path, key=caller).status == 403, path
        assert served.gateway.get(f"/api{path}").status == 401, path
        assert api(served, "GET", path, key=viewer).status == 200, path
    steps = [{"id": "a", "prompt": "Summarize the ticket."}]
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    for path, asks in (("/classify", {"prompt": "x"}), ("/allocate", {"steps": steps}), ("/explain", body)):
        assert api(served, "POST", path, asks, viewer).status == 200, path
        assert api(served, "POST", path, asks, caller).status == 403, path
    change = {"value": True}
    assert api(served, "PUT", "/settings/orchestration_enabled", change, viewer).status == 403
    assert api(served, "PUT", "/settings/orchestration_enabled", change, caller).status == 403
    assert call(served, admin).status == 403
    assert call(served, viewer).status == 403
    assert served.seen() == 0


def test_key_limits_models_sets_default_tags_and_has_its_own_budget(served: Served) -> None:
    limited = make(served, "picky", allowed_models=["other"])["key"]
    assert (call(served, limited).status, call(served, limited).json()["error"]["code"]) == (403, "model_not_allowed")
    defaults = make(served, "tagged", workflow="from-key", agent="bot", step="nightly")["key"]
    reply = call(served, defaults)
    assert reply.headers["x-workflow-run-id"].startswith("implicit-")
    assert reply.headers["x-workflow-step"] == "nightly"
    assert served.chat({**bearer(defaults), "x-workflow-step": "own"}).headers["x-workflow-step"] == "own"
    metered = make(served, "metered")["key"]
    assert [call(served, metered).status for _ in range(3)] == [200, 200, 402]
    error = call(served, metered).json()["error"]
    assert (error["code"], error["metadata"]["scope_id"]) == ("key_budget_exceeded", "metered")
    own = make(served, "own-limit", limits={"requests": 1})["key"]
    assert [call(served, own).status for _ in range(2)] == [200, 402]


def test_concurrency_limits_of_key_and_project_are_enforced(served: Served) -> None:
    first_key, second_key = (
        make(served, f"busy-{n}", project="busy", limits={"concurrency": 1})["key"] for n in range(2)
    )
    third = make(served, "busy-3", project="busy")["key"]
    served.provider.script(delay_ms=1500, times=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, served, first_key)
        until(lambda: served.seen() == 1, 10, "the first call is with the provider")
        assert "This key has as many" in call(served, first_key).json()["error"]["message"]
        second = pool.submit(call, served, second_key)
        until(lambda: served.seen() == 2, 10, "the second call is with the provider")
        refused = call(served, third)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "This project has as many" in refused.json()["error"]["message"]
        assert [first.result().status, second.result().status] == [200, 200]
    assert call(served, third).status == 200


def test_same_run_id_in_two_projects_is_two_runs(served: Served) -> None:
    """What one of them spent does not show in the other."""
    ours = make(served, "ours", project="p-1")["key"]
    theirs = make(served, "theirs", project="p-2")["key"]
    headers = {**tagged("wf", "r-shared"), "x-workflow-budget-tokens": "60"}
    served.provider.script(tokens=40)
    assert served.chat({**headers, **bearer(ours)}, max_tokens=40).status == 200
    assert served.chat({**headers, **bearer(ours)}, max_tokens=40).status == 402
    reply = served.chat({**tagged("wf", "r-shared"), **bearer(theirs)}, max_tokens=16)
    assert reply.status == 200
    assert "x-budget-run-limit" not in reply.headers


def test_no_secret_is_in_log_metrics_or_files(served: Served) -> None:
    """Last in the file: checks everything that the tests before it have left behind."""
    metrics = served.gateway.get("/metrics").body.decode()
    assert served.gateway.stop() == 0
    secrets = [*SECRETS_SEEN, ADMIN, "upstream-key"]
    stored = [repr(row) for row in store_rows(served.gateway.folder, "SELECT * FROM api_keys")]
    files = [path for path in (served.gateway.folder / ".farebox").rglob("*") if path.is_file()]
    for secret in secrets:
        assert secret not in served.gateway.log
        assert secret not in metrics
        assert not [row for row in stored if secret in row]
        assert not [path.name for path in files if secret.encode() in path.read_bytes()]
