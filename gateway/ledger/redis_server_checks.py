"""Checks whether a Redis server is fit to keep money. Done once, when the ledger is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from gateway.ledger.port import LedgerError

# XRANGE with an exclusive start, which reads the outbox in batches, needs Redis 6.2; every Valkey has it.
_VERSION_MIN: Final = (6, 2)


def parse_info(text: str) -> dict[str, str]:
    """The reply to INFO: `name:value` lines."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {name: value.strip() for name, _, value in pairs}


def check_server(info: Mapping[str, str], *, allow_eviction: bool) -> list[str]:
    """Warnings about one server. Raises `LedgerError` for settings that would lose budgets silently."""
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < _VERSION_MIN:
        raise LedgerError(f"Redis {version} is too old for the ledger: use Redis 6.2 or later, or Valkey")
    warnings = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        advice = f"maxmemory-policy is {policy}: Redis may evict a budget, which resets it without a word. Set it to noeviction"
        if not allow_eviction:
            raise LedgerError(f"{advice}, or start with allow_eviction to take that risk")
        warnings.append(advice)
    if info.get("aof_enabled") != "1":
        warnings.append(
            "appendonly is off: what was settled since the last snapshot is lost when Redis stops. Set appendonly to yes."
        )
    return warnings


def check_servers(replies: Iterable[str], *, allow_eviction: bool) -> tuple[str, ...]:
    """Warnings about all servers, without duplicates. Raises like `check_server`."""
    warnings = [
        warning for text in replies for warning in check_server(parse_info(text), allow_eviction=allow_eviction)
    ]
    return tuple(dict.fromkeys(warnings))


def check_durability(replies: Iterable[list[bytes]]) -> None:
    """`durability: strict` means that a reply implies data on the disk. Raises `LedgerError` if that is not so."""
    for reply in replies:
        value = reply[1].decode() if len(reply) > 1 else "unknown"
        if value != "always":
            raise LedgerError(f"durability is strict, but appendfsync is {value}: set it to always")
