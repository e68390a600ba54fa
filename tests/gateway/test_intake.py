"""Who calls: a key becomes a principal, which is made anew only when the key was changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.control import Snapshot, first_snapshot
from gateway.errors import AuthenticationFailed
from gateway.pipeline import intake
from gateway.pipeline.call import Principal
from gateway.pipeline.intake import Intake
from gateway.store import keys
from gateway.store.keys import ApiKey


class Door:
    """An intake, and the keys that it knows now."""

    def __init__(self) -> None:
        self.snapshot: Snapshot = replace(first_snapshot(), is_loaded=True)
        self._intake = Intake(
            snapshot=lambda: self.snapshot,
            is_model=lambda _: True,
            runs=None,  # type: ignore[arg-type]  # nothing is asked of it here
            body_bytes_max=1000,
            new_id=lambda: "id",
            clock_ms=lambda: 1,
            local_mode_allowed=False,
        )

    def have(self, *known: ApiKey) -> None:
        self.snapshot = replace(self.snapshot, keys={key.digest: key for key in known})

    def enter(self, plain: str) -> Principal:
        return self._intake.authenticate({"authorization": f"Bearer {plain}"})


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


def test_two_keys_are_told_apart_however_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_PRINCIPALS_MAX", 1)
    door, plains = Door(), {name: keys.make_plain() for name in ("a", "b", "c")}
    door.have(*(made(plain, name) for name, plain in plains.items()))
    for _ in range(2):
        assert [door.enter(plain).key_name for plain in plains.values()] == ["a", "b", "c"]
