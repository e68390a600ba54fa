"""The Lua scripts of the Redis ledger, one for each operation, put together from the files in `lua/`.

A script is named by the hash of its text, so an old and a new gateway may share a Redis while one replaces the other: each runs
its own. What they must agree on is the layout of the keys, which the scripts check (`LAYOUT` in prelude.lua).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    text: str
    sha: str


_WITH_DECISION: Final = ("prelude", "fit")
_WITH_OUTCOME: Final = ("prelude", "resolution")
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "reserve": _WITH_DECISION,
    "extend": _WITH_DECISION,
    "settle": _WITH_OUTCOME,
    "void": _WITH_OUTCOME,
    "expire": _WITH_OUTCOME,
}
# What ends a reservation, drains the outbox or forgets must work when Redis is full, or nothing would ever make room again.
_ALLOWED_WHEN_FULL: Final = frozenset(
    {"settle", "void", "expire", "renew", "outbox_read", "acknowledge", "purge", "fence", "gate"}
)
_READS_ONLY: Final = frozenset({"balances"})


def load(name: str) -> Script:
    """The script of one operation, with the parts that it needs. Raises `FileNotFoundError` for an unknown name."""
    folder = resources.files("gateway.ledger") / "lua"
    parts = [*_PARTS.get(name, ("prelude",)), name]
    flags = " flags=allow-oom" if name in _ALLOWED_WHEN_FULL else " flags=no-writes" if name in _READS_ONLY else ""
    text = "\n".join([f"#!lua{flags}", *((folder / f"{part}.lua").read_text() for part in parts)])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


RESERVE: Final = load("reserve")
EXTEND: Final = load("extend")
RENEW: Final = load("renew")
SETTLE: Final = load("settle")
VOID: Final = load("void")
EXPIRE: Final = load("expire")
RECORD: Final = load("record")
BALANCES: Final = load("balances")
OVERRIDE: Final = load("override")
GATE: Final = load("gate")
CURRENT_RUN: Final = load("current_run")
OUTBOX_READ: Final = load("outbox_read")
ACKNOWLEDGE: Final = load("acknowledge")
RESTORE: Final = load("restore")
PURGE: Final = load("purge")
ADOPT: Final = load("adopt")
FENCE: Final = load("fence")
