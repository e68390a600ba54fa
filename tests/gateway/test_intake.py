"""Who calls: a key becomes a principal, which is made anew only when the key was changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gateway.app import Application
from gateway.config.loading import parse_config
from gateway.control import Snapshot, first_snapshot
from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.pipeline import intake
from gateway.pipeline.call import Principal
from gateway.pipeline.intake import Intake, OpenTo
from gateway.store import keys
from gateway.store.keys import ApiKey
from tests.api_client import CONFIG, Api, close_api


class Door:
    """An intake, and the keys that it knows now."""

    def __init__(self, open_to: OpenTo = "nobody") -> None:
        self.snapshot: Snapshot = replace(first_snapshot(), is_loaded=True)
        self._intake = Intake(
            snapshot=lambda: self.snapshot,
            is_model=lambda _: True,
            runs=None,  # type: ignore[arg-type]  # nothing is asked of it here
            body_bytes_max=1000,
            new_id=lambda: "id",
            clock_ms=lambda: 1,
            open_to=open_to,
        )

    def have(self, *known: ApiKey) -> None:
        self.snapshot = replace(self.snapshot, keys={key.digest: key for key in known})

    def enter(self, plain: str) -> Principal:
        return self._intake.authenticate({"authorization": f"Bearer {plain}"})

    def enter_without_key(self, **headers: str) -> Principal:
        return self._intake.authenticate({name.replace("_", "-"): value for name, value in headers.items()})


def made(plain: str, name: str = "ci") -> ApiKey:
    return ApiKey(f"key_{name}", name, "default", plain[:8], keys.digest_of(plain), limits={"concurrency": 1})


def test_one_key_is_one_principal_until_it_is_changed() -> None:
    door, plain = Door(), keys.make_plain()
    key = made(plain)
    door.have(key)
    first = door.enter(plain)
    assert (first.key_id, first.concurrency_max) == ("key_ci", 1)
    assert door.enter(plain) is first
    door.have(replace(key, limits={"concurrency": 2}, workflow="nightly"))
    changed = door.enter(plain)
    assert (changed.concurrency_max, changed.defaults) == (2, {"workflow": "nightly"})
    door.have(made(keys.make_plain(), "other"))
    with pytest.raises(AuthenticationFailed):
        door.enter(plain)


@pytest.mark.parametrize("open_to", ["this machine", "anyone"])
def test_without_a_key_only_pages_of_this_machine_may_call(open_to: OpenTo) -> None:
    door = Door(open_to)
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example:4000"):
        with pytest.raises(PermissionDenied):
            door.enter_without_key(host="127.0.0.1:4000", origin=origin)
    for origin in ("http://localhost:3000", "http://[::1]:4000", "app://obsidian.md"):
        assert door.enter_without_key(host="127.0.0.1:4000", origin=origin).is_anonymous


def test_a_page_whose_name_was_pointed_here_is_foreign_unless_anyone_may_call() -> None:
    rebound = {"host": "evil.example:4000", "origin": "http://evil.example:4000"}
    with pytest.raises(PermissionDenied):
        Door("this machine").enter_without_key(**rebound)
    assert Door("anyone").enter_without_key(**rebound).is_anonymous


@pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for", "x_real_ip", "x_forwarded_host"])
def test_without_a_key_nobody_calls_through_a_proxy_unless_anyone_may(header: str) -> None:
    passed_on = {"host": "127.0.0.1:4000", header: "127.0.0.1"}
    with pytest.raises(AuthenticationFailed, match="--allow-anonymous"):
        Door("this machine").enter_without_key(**passed_on)
    assert Door("anyone").enter_without_key(**passed_on).is_anonymous


async def test_without_the_store_no_key_is_called_wrong(tmp_path: Path) -> None:
    """Clients give up after a 401. And as long as the gateway cannot know that there are no keys, nobody gets in without one."""
    config = CONFIG.format(folder=tmp_path).replace(
        f"sqlite:///{tmp_path}/store.db", "postgresql://nobody@127.0.0.1:1/none"
    )
    application = Application(parse_config(config, environ={}), environment={})
    await application.start()
    transport = httpx.ASGITransport(app=application, client=("127.0.0.1", 40_000))
    api = Api(application, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4000"))
    try:
        for headers in ({"authorization": f"Bearer {keys.make_plain()}"}, {}):
            reply = await api.client.post("/v1/chat/completions", json={"model": "mock"}, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
            assert reply.headers["retry-after"] == "1"
        assert (await api.client.get("/readyz")).status_code == 503
    finally:
        await close_api(api)


def test_two_keys_are_told_apart_however_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_PRINCIPALS_MAX", 1)
    door, plains = Door(), {name: keys.make_plain() for name in ("a", "b", "c")}
    door.have(*(made(plain, name) for name, plain in plains.items()))
    for _ in range(2):
        assert [door.enter(plain).key_name for plain in plains.values()] == ["a", "b", "c"]
