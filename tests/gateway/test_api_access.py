"""Access to every route: without a key, with wrong, virtual, viewer and admin keys, from other machines and other sites."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.config.faults import ConfigError
from gateway.control import first_snapshot
from gateway.endpoints.access import (
    OPERATOR_SCOPE,
    Access,
    Operator,
    OperatorFile,
    check_binding,
    operator_file,
    read_operator,
)
from gateway.endpoints.api.table import ROUTES
from gateway.errors import AuthenticationFailed, GatewayError, Overloaded
from gateway.store import keys as keys_store
from tests.api_client import Api, close_api, make_api

pytest_plugins = ("tests.api_fixtures",)

ADMIN_KEY = "a-long-enough-admin-key"
QUESTIONS = ("/classify", "/allocate", "/explain")


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Api]:
    """A gateway with an admin key in its environment; requests carry none by themselves."""
    keyed_api = await make_api(tmp_path, {"FAREBOX_ADMIN_KEY": ADMIN_KEY})
    yield keyed_api
    await close_api(keyed_api)


def with_key(key: str) -> dict[str, dict[str, str]]:
    return {"headers": {"authorization": f"Bearer {key}"}}


async def new_key(api: Api, **fields: Any) -> str:
    created = await api.post("/api/keys", {"name": "k", **fields}, **with_key(ADMIN_KEY))
    return str(created["key"])


async def test_every_route_admits_exactly_the_keys_its_role_requires(keyed: Api) -> None:
    virtual, viewer = await new_key(keyed), await new_key(keyed, role="viewer")
    admin, revoked = await new_key(keyed, admin=True), await new_key(keyed, admin=True, name="gone")
    await keyed.delete("/api/keys/gone", **with_key(ADMIN_KEY))
    junk = "' OR 1=1 --"
    openapi: Any = SimpleNamespace(method="GET", path="/openapi.json", role="viewer")
    for route in (*ROUTES, openapi):
        path = "/api" + route.path.replace("{", "no-such-").replace("}", "")
        is_dry_run = route.method == "GET" or route.path in QUESTIONS
        assert (route.role == "viewer") == is_dry_run
        for key, expected in (
            (None, 401),
            (junk, 401),
            ("fb_" + "0" * 49, 401),
            (revoked, 401),
            (virtual, 403),
            (viewer, None if is_dry_run else 403),
            (admin, None),
            (ADMIN_KEY, None),
        ):
            reply = await keyed.ask(route.method, path, **(with_key(key) if key else {}))
            context = f"{route.method} {path} as {key}: {reply.text[:200]}"
            assert reply.status_code < 500, context
            assert key is None or key not in reply.text, context
            if expected is None:
                assert reply.status_code not in (401, 403), context
            else:
                assert reply.status_code == expected, context
                assert {"message", "type", "code", "param"} <= reply.json()["error"].keys(), context
        keyed.application.access._failures.clear()


async def test_model_call_with_the_environment_admin_key_is_401_with_a_hint(keyed: Api) -> None:
    for key in (ADMIN_KEY, "junk"):
        reply = await keyed.chat("r1", **with_key(key)["headers"])
        assert reply.status_code == 401
        assert "`farebox keys create`" in reply.json()["error"]["message"], "the same message for every wrong key"


async def test_admin_and_viewer_keys_may_not_call_models(keyed: Api) -> None:
    for key in (await new_key(keyed, admin=True), await new_key(keyed, role="viewer")):
        reply = await keyed.chat("r1", **with_key(key)["headers"])
        assert reply.status_code == 403


@pytest.mark.parametrize("asks", [False, True])
async def test_metrics_name_keys_and_projects_only_with_metrics_auth(tmp_path: Path, asks: bool) -> None:
    api = await make_api(
        tmp_path, {"FAREBOX_ADMIN_KEY": ADMIN_KEY}, more=f"server: {{metrics_auth: {str(asks).lower()}}}\n"
    )
    try:
        virtual = await new_key(api, name="tenant-key", project="tenant-project")
        for scope, match in (("key", "tenant-key"), ("project", "tenant-project"), ("workflow", "nightly")):
            budget = {"scope": scope, "match": match, "usd": 1, "window": "total"}
            await api.post("/api/budgets", budget, **with_key(ADMIN_KEY))
        assert (await api.chat("r1", **with_key(virtual)["headers"])).status_code == 200
        await api.application._gauges.show_budgets()
        statuses = [
            (await api.ask("GET", "/metrics", **options)).status_code
            for options in (
                {},
                with_key("junk"),
                with_key(virtual),
                with_key(await new_key(api, name="viewer", role="viewer")),
            )
        ]
        assert statuses == ([401, 401, 403, 200] if asks else [200] * 4)
        metrics = (await api.ask("GET", "/metrics", **with_key(ADMIN_KEY))).text
        assert 'farebox_budget_limit_usd{name="nightly",scope="workflow"} 1.0' in metrics
        assert ("tenant-key" in metrics, "tenant-project" in metrics) == (asks, asks)
    finally:
        await close_api(api)


async def test_x_api_key_header_is_accepted_unless_authorization_differs(keyed: Api) -> None:
    assert (await keyed.ask("GET", "/api/settings", headers={"x-api-key": ADMIN_KEY})).status_code == 200
    both = {"x-api-key": ADMIN_KEY, "authorization": "Bearer another"}
    assert (await keyed.ask("GET", "/api/settings", headers=both)).status_code == 400


async def test_unauthenticated_request_is_401_before_its_body_and_query_are_checked(keyed: Api) -> None:
    assert (await keyed.ask("POST", "/api/runs", content=b"{junk")).status_code == 401
    assert (await keyed.ask("GET", "/api/runs?surprise=1")).status_code == 401


async def test_creating_the_first_key_ends_local_mode(api: Api) -> None:
    await api.get("/api/settings")
    created = await api.post("/api/keys", {"name": "app"})
    assert "no admin key" in created["warning"]
    assert (await api.ask("GET", "/api/settings")).status_code == 401
    assert (await api.ask("GET", "/api/settings", **with_key(created["key"]))).status_code == 403
    assert (await api.chat("r1")).status_code == 401
    assert (await api.chat("r1", **with_key(created["key"])["headers"])).status_code == 200


FOREIGN = (
    {"host": "evil.example"},
    {"x-forwarded-for": "203.0.113.7"},
    {"forwarded": "for=203.0.113.7"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
)
OWN: tuple[dict[str, str], ...] = (
    {},
    {"host": "localhost:4000"},
    {"host": "[::1]:4000"},
    {"origin": "http://127.0.0.1:4000", "sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
)


async def test_local_mode_refuses_proxied_and_cross_site_requests(api: Api) -> None:
    for headers in FOREIGN:
        assert (await api.ask("GET", "/api/settings", headers=headers)).status_code == 401, headers
    for headers in OWN:
        assert (await api.ask("GET", "/api/settings", headers=headers)).status_code == 200, headers


async def test_root_redirects_to_the_admin_pages(api: Api) -> None:
    reply = await api.ask("GET", "/")
    assert (reply.status_code, reply.headers["location"]) == (307, "/admin")


async def test_local_mode_refuses_remote_peers(tmp_path: Path) -> None:
    remote_api = await make_api(tmp_path, peer="192.0.2.9")
    assert (await remote_api.ask("GET", "/api/settings")).status_code == 401
    await close_api(remote_api)


async def test_operator_token_file_is_private_and_grants_admin_access(keyed: Api, tmp_path: Path) -> None:
    file = operator_file(tmp_path / "store.db")
    assert file.stat().st_mode & 0o777 == 0o600
    token = file.read_text().partition("\n")[0]
    await keyed.get("/api/settings", **with_key(token))
    event = await keyed.post("/api/runs", {"workflow": "w", "run": "r"}, **with_key(token))
    assert event["run"] == "r"
    audit = await keyed.get("/api/audit", headers={"authorization": f"Bearer {token}"})
    assert audit["events"][0]["actor"] == "operator"


async def test_operator_file_is_removed_at_shutdown(tmp_path: Path) -> None:
    local_api = await make_api(tmp_path)
    assert operator_file(tmp_path / "store.db").exists()
    await close_api(local_api)
    assert not operator_file(tmp_path / "store.db").exists()


async def test_audit_actor_is_the_key_and_the_user_header(keyed: Api) -> None:
    admin = await new_key(keyed, admin=True, name="ops")
    for key, user, actor in ((admin, "", "ops"), (admin, "anna", "ops/anna"), (ADMIN_KEY, "bob\t", "environment")):
        headers = {"authorization": f"Bearer {key}", "x-farebox-user": user}
        await keyed.put("/api/settings/orchestration_max_retry_attempts", {"value": 3}, headers=headers)
        audit = await keyed.get("/api/audit?action=setting.&limit=1", headers=headers)
        assert audit["events"][0]["actor"] == actor


def request(peer: str = "192.0.2.1", **headers: str) -> Any:
    return SimpleNamespace(scope={}, headers=headers, client=SimpleNamespace(host=peer))


def test_throttled_guessing_does_not_lock_out_unguessable_keys() -> None:
    long_key, token = "k" * 24, "operator-token"
    access = Access(loaded, admin_key=long_key, operator_token=token, clock_ms=lambda: 0, timer_s=lambda: 0.0)
    for _ in range(20):
        with pytest.raises(AuthenticationFailed):
            access.check(request(authorization="Bearer guess"), "viewer")
    with pytest.raises(Overloaded):
        access.check(request(authorization="Bearer guess"), "viewer")
    assert access.check(request(authorization=f"Bearer {token}"), "admin").name == "operator"
    assert access.check(request(authorization=f"Bearer {long_key}"), "admin").name == "environment"


def test_guessing_a_short_admin_key_is_throttled_per_source() -> None:
    now = [0.0]
    access = Access(loaded, admin_key=ADMIN_KEY, clock_ms=lambda: 0, timer_s=lambda: now[0])
    for _ in range(20):
        with pytest.raises(AuthenticationFailed):
            access.check(request(authorization="Bearer guess"), "viewer")
    for key in ("guess", ADMIN_KEY):
        with pytest.raises(Overloaded):
            access.check(request(authorization=f"Bearer {key}"), "viewer")
    assert access.check(request("192.0.2.2", authorization=f"Bearer {ADMIN_KEY}"), "admin").name == "environment"
    now[0] = 61.0
    assert access.check(request(authorization=f"Bearer {ADMIN_KEY}"), "admin").name == "environment"


def loaded(**fields: Any) -> Any:
    """A control snapshot that has been read from the store."""
    return replace(first_snapshot(), **{"is_loaded": True, **fields})


def test_access_is_denied_until_keys_are_loaded_from_the_store() -> None:
    access = Access(first_snapshot, clock_ms=lambda: 0, timer_s=lambda: 0.0)
    local = request("127.0.0.1", host="127.0.0.1")
    with pytest.raises(AuthenticationFailed):
        access.check(local, "viewer")
    with pytest.raises(GatewayError) as refused:
        access.check(
            request("127.0.0.1", host="127.0.0.1", authorization="Bearer " + keys_store.make_plain_key()), "viewer"
        )
    assert refused.value.status == 503


def test_in_process_operator_is_admin_without_a_key() -> None:
    access = Access(loaded, admin_key=ADMIN_KEY, clock_ms=lambda: 0, timer_s=lambda: 0.0)
    inside = request()
    inside.scope[OPERATOR_SCOPE] = "anna"
    assert access.check(inside, "admin").name == "cli:anna"


def test_admin_key_shorter_than_8_characters_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="FAREBOX_ADMIN_KEY must have at least 8 characters"):
        check_binding("127.0.0.1", loaded(), admin_key="sk-1234", allow_anonymous=True)
    check_binding("0.0.0.0", loaded(), admin_key="k" * 8, allow_anonymous=False)


def test_gateway_starts_on_any_address_while_its_keys_are_unknown() -> None:
    """Until its store can be reached, it admits nobody."""
    check_binding("0.0.0.0", first_snapshot(), admin_key="", allow_anonymous=False)


def test_operator_file_is_overwritten_with_a_new_token_and_mode_0600(tmp_path: Path) -> None:
    operator_file(tmp_path / "store.db").write_text("old")
    operator_file(tmp_path / "store.db").chmod(0o644)
    file = OperatorFile.of_store(f"sqlite:///{tmp_path}/store.db")
    file.write("http://127.0.0.1:4000")
    written = operator_file(tmp_path / "store.db")
    assert read_operator(tmp_path / "store.db") == Operator(file.token, "http://127.0.0.1:4000")
    assert file.token not in ("", "old")
    assert written.stat().st_mode & 0o777 == 0o600
    assert OperatorFile.of_store("postgresql://db/farebox").token == ""


BINDINGS = (
    # host, keys, FAREBOX_ADMIN_KEY, --allow-anonymous, may start
    ("127.0.0.1", False, "", False, True),
    ("::1", False, "", False, True),
    ("localhost", False, "", False, True),
    ("0.0.0.0", False, "", False, False),
    ("::", False, "", False, False),
    ("192.0.2.1", False, "", False, False),
    ("0.0.0.0", True, "", False, True),
    ("0.0.0.0", False, ADMIN_KEY, False, True),
    ("0.0.0.0", False, "", True, True),
)


@pytest.mark.parametrize(("host", "keys", "admin_key", "allowed", "starts"), BINDINGS)
def test_binding_beyond_loopback_requires_keys_or_allow_anonymous(
    host: str, keys: bool, admin_key: str, allowed: bool, starts: bool
) -> None:
    snapshot = loaded(keys={"digest": object()} if keys else {})
    if starts:
        check_binding(host, snapshot, admin_key=admin_key, allow_anonymous=allowed)
        return
    with pytest.raises(ConfigError) as refused:
        check_binding(host, snapshot, admin_key=admin_key, allow_anonymous=allowed)
    assert len(refused.value.faults) == 1
    assert "--allow-anonymous" in refused.value.faults[0]
