"""The Lua scripts of the Redis ledger, one per operation, assembled from the files in `lua/`.

A script is identified by the hash of its text, so during an upgrade an old and a new gateway can share a Redis: each runs its
own. They only have to agree on the layout of the keys, which the scripts check (`LAYOUT` in prelude.lua).
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
_WITH_RESOLUTION: Final = ("prelude", "resolution")
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "reserve": _WITH_DECISION,
    "extend": _WITH_DECISION,
    "settle": _WITH_RESOLUTION,
    "void": _WITH_RESOLUTION,
    "expire": _WITH_RESOLUTION,
}
# Scripts that end reservations, drain the outbox or forget must run when Redis is full, or it would never have room again.
_ALLOWED_WHEN_FULL: Final = frozenset(
    {"settle", "void", "expire", "renew", "outbox_read", "acknowledge", "purge", "fence", "gate"}
)
# A full Redis only refuses the first write of a script. So this write, which changes nothing and needs no room, comes first.
# Flags would do the same (`#!lua flags=allow-oom`), but need Redis 7.0.
_NO_OP_WRITE: Final = "redis.call('HDEL', KEYS[1], '')"


def load_script(name: str) -> Script:
    """The script of one operation with the parts it needs. Raises `FileNotFoundError` for an unknown name."""
    folder = resources.files("gateway.ledger") / "lua"
    parts = [*_PARTS.get(name, ("prelude",)), name]
    first = [_NO_OP_WRITE] if name in _ALLOWED_WHEN_FULL else []
    text = "\n".join([*first, *((folder / f"{part}.lua").read_text() for part in parts)])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


RESERVE: Final = load_script("reserve")
EXTEND: Final = load_script("extend")
RENEW: Final = load_script("renew")
SETTLE: Final = load_script("settle")
VOID: Final = load_script("void")
EXPIRE: Final = load_script("expire")
RECORD: Final = load_script("record")
BALANCES: Final = load_script("balances")
OVERRIDE: Final = load_script("override")
GATE: Final = load_script("gate")
CURRENT_RUN: Final = load_script("current_run")
OUTBOX_READ: Final = load_script("outbox_read")
ACKNOWLEDGE: Final = load_script("acknowledge")
RESTORE: Final = load_script("restore")
PURGE: Final = load_script("purge")
ADOPT: Final = load_script("adopt")
FENCE: Final = load_script("fence")
