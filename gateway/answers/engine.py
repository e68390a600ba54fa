"""Chooses the shelf that matches the ledger: with the same lifetime, and shared by the same processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.answers.memory import MemoryShelf
from gateway.answers.port import AnswerShelf, Room
from gateway.answers.sqlite import SqliteShelf, file_beside

_SQLITE: Final = "sqlite:///"


def shelf_of(ledger_url: str, room: Room, clock_ms: Callable[[], int]) -> AnswerShelf:
    if ledger_url.startswith("memory://"):
        return MemoryShelf(room, clock_ms)
    if ledger_url.startswith(_SQLITE):
        return SqliteShelf(file_beside(Path(ledger_url.removeprefix(_SQLITE))), room, clock_ms)
    from gateway.answers.redis import RedisShelf  # most gateways have no Redis

    return RedisShelf(ledger_url, room)
