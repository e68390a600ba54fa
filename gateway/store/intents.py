"""Intents learned by asking a model, until they expire. Keys are hashes: no prompt is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from gateway.store.bulk import insert, is_in, replace_on_conflict
from gateway.store.database import Database
from gateway.store.tables import intent_cache


@dataclass(frozen=True, slots=True)
class LearnedIntent:
    key: str
    intent: str
    confidence: float
    source: str
    expires_at_ms: int
    reasoning: str = ""
    created_at_ms: int = 0


async def put_many(db: Database, learned: Sequence[LearnedIntent]) -> None:
    """Store, or replace what was known. Of two with the same key the last one counts."""
    rows = {
        intent.key: {
            "key": intent.key,
            "intent": intent.intent,
            "confidence": intent.confidence,
            "source": intent.source,
            "reasoning": intent.reasoning,
            "created_at": intent.created_at_ms,
            "expires_at": intent.expires_at_ms,
        }
        for intent in learned
    }
    names = ("intent", "confidence", "source", "reasoning", "created_at", "expires_at")
    ordered = [rows[key] for key in sorted(rows)]  # so that concurrent writers lock in the same order
    async with db.begin() as connection:
        await insert(connection, intent_cache, ordered, replace_on_conflict(intent_cache, names))


async def get_many(db: Database, keys: Sequence[str], now_ms: int) -> dict[str, LearnedIntent]:
    """Those of `keys` that are known and have not expired."""
    if not keys:
        return {}
    async with db.begin() as connection:
        query = select(intent_cache).where(
            is_in(connection, intent_cache.c.key, keys), intent_cache.c.expires_at > now_ms
        )
        return {row.key: _learned(row) for row in await connection.execute(query)}


async def latest(db: Database, now_ms: int, limit: int = 10_000) -> list[LearnedIntent]:
    """The newest that have not expired, to warm up a new process."""
    query = select(intent_cache).where(intent_cache.c.expires_at > now_ms)
    async with db.begin() as connection:
        rows = await connection.execute(query.order_by(intent_cache.c.created_at.desc()).limit(limit))
        return [_learned(row) for row in rows]


async def forget_expired(db: Database, now_ms: int) -> int:
    """Returns how many were deleted."""
    async with db.begin() as connection:
        result = await connection.execute(intent_cache.delete().where(intent_cache.c.expires_at <= now_ms))
    return result.rowcount


def _learned(row: object) -> LearnedIntent:
    values = row._mapping  # type: ignore[attr-defined]
    return LearnedIntent(
        key=values["key"],
        intent=values["intent"],
        confidence=values["confidence"],
        source=values["source"],
        expires_at_ms=values["expires_at"],
        reasoning=values["reasoning"],
        created_at_ms=values["created_at"],
    )
