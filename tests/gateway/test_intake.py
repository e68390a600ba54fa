"""Authentication: a key gives a principal, which is cached until the key changes; anonymous calls are restricted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.control import Snapshot, first_snapshot
from gateway.errors import AuthenticationFailed, KeysUnknown, PermissionDenied
from gateway.pipeline import intake
from gateway.pipeline.call import Principal
from gateway.pipeline.intake import Intake, OpenTo
from gateway.store import keys
from gateway.store.keys import ApiKey
from tests.api_client import close_api, make_api


class KeyedIntake:
    """An intake, called with the keys that it currently knows."""

    def __init__(self, open_to: OpenTo = "nobody") -> None:
        self.snapshot: Snapshot = replace(first_snapshot(), is_loaded=True)
        self._intake = Intake(
            snapshot=lambda: self.snapshot,
            is_model=lambda _: True,
            runs=None,  # type: ignore[arg-type]  # not used here
            body_bytes_max=1000,
            new_id=lambda: "id",
            clock_ms=lambda: 1,
            open_to=open_to,
        )

    def set_keys(self, *known: ApiKey) -> None:
        self.snapshot = replace(self.snapshot, keys={key.digest: key for key in known})

    def authenticate(self, plain: str) -> Principal:
        return self._intake.authenticate({"authorization": f"Bearer {plain}"})

    def authenticate_without_key(self, **headers: str) -> Principal:
        return self._intake.authenticate({name.replace("_", "-"): value for name, value in headers.items()})


def stored_key(plain: str, name: str = "ci") -> ApiKey:
    return ApiKey(f"key_{name}", name, "default", plain[:8], keys.digest_of(plain), limits={"concurrency": 1})


def test_principal_of_a_key_is_cached_until_the_key_changes() -> None:
    intake_with_keys, plain = KeyedIntake(), keys.make_plain_key()
    key = stored_key(plain)
    intake_with_keys.set_keys(key)
    first = intake_with_keys.authenticate(plain)
    assert (first.key_id, first.concurrency_max) == ("key_ci", 1)
    assert intake_with_keys.authenticate(plain) is first
    intake_with_keys.set_keys(replace(key, limits={"concurrency": 2}, workflow="nightly"))
    changed = intake_with_keys.authenticate(plain)
    assert (changed.concurrency_max, changed.defaults) == (2, {"workflow": "nightly"})
    intake_with_keys.set_keys(stored_key(keys.make_plain_key(), "other"))
    with pytest.raises(AuthenticationFailed):
        intake_with_keys.authenticate(plain)


@pytest.mark.parametrize("open_to", ["this machine", "anyone"])
def test_anonymous_call_requires_a_local_origin(open_to: OpenTo) -> None:
    intake_with_keys = KeyedIntake(open_to)
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example:4000"):
        with pytest.raises(PermissionDenied):
            intake_with_keys.authenticate_without_key(host="127.0.0.1:4000", origin=origin)
    for origin in ("http://localhost:3000", "http://[::1]:4000", "app://obsidian.md"):
        assert intake_with_keys.authenticate_without_key(host="127.0.0.1:4000", origin=origin).is_anonymous


def test_rebound_host_is_refused_unless_open_to_anyone() -> None:
    rebound = {"host": "evil.example:4000", "origin": "http://evil.example:4000"}
    with pytest.raises(PermissionDenied):
        KeyedIntake("this machine").authenticate_without_key(**rebound)
    assert KeyedIntake("anyone").authenticate_without_key(**rebound).is_anonymous


@pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for", "x_real_ip", "x_forwarded_host"])
def test_anonymous_call_through_a_proxy_is_refused_unless_open_to_anyone(header: str) -> None:
    passed_on = {"host": "127.0.0.1:4000", header: "127.0.0.1"}
    with pytest.raises(AuthenticationFailed, match="--allow-anonymous"):
        KeyedIntake("this machine").authenticate_without_key(**passed_on)
    assert KeyedIntake("anyone").authenticate_without_key(**passed_on).is_anonymous


def test_key_is_not_called_unknown_before_the_keys_are_known() -> None:
    """Where everybody needs a key, only a call without one can be refused for good already."""
    intake_without_keys = KeyedIntake("nobody")
    intake_without_keys.snapshot = first_snapshot()
    with pytest.raises(KeysUnknown):
        intake_without_keys.authenticate(keys.make_plain_key())
    with pytest.raises(AuthenticationFailed):
        intake_without_keys.authenticate_without_key()


@pytest.mark.parametrize("rights", [{"admin": True}, {"role": "viewer"}])
def test_key_that_administers_calls_no_models(rights: dict[str, Any]) -> None:
    intake_with_keys, plain = KeyedIntake(), keys.make_plain_key()
    intake_with_keys.set_keys(replace(stored_key(plain), **rights))
    with pytest.raises(PermissionDenied):
        intake_with_keys.authenticate(plain)


def test_empty_key_is_no_key() -> None:
    with pytest.raises(AuthenticationFailed, match="Send an API key"):
        KeyedIntake().authenticate("")


async def test_unreachable_store_at_start_is_503_with_and_without_a_key(tmp_path: Path) -> None:
    """Not 401, after which clients give up. And while it is unknown whether keys exist, anonymous calls are refused."""
    api = await make_api(tmp_path, store="postgresql://nobody@127.0.0.1:1/none")
    try:
        for headers in ({"authorization": f"Bearer {keys.make_plain_key()}"}, {}):
            reply = await api.client.post("/v1/chat/completions", json={"model": "mock"}, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
            assert reply.headers["retry-after"] == "1"
        assert (await api.client.get("/readyz")).status_code == 503
    finally:
        await close_api(api)


def test_keys_keep_their_principals_when_the_cache_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_PRINCIPALS_MAX", 1)
    intake_with_keys, plains = KeyedIntake(), {name: keys.make_plain_key() for name in ("a", "b", "c")}
    intake_with_keys.set_keys(*(stored_key(plain, name) for name, plain in plains.items()))
    for _ in range(2):
        assert [intake_with_keys.authenticate(plain).key_name for plain in plains.values()] == ["a", "b", "c"]
