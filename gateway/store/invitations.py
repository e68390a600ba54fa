"""The one-time link with which the first user sets a password. There is no default password.

An invitation is a row of `admin_sessions` without a user: it opens no page, any process can check it, and it ends when it is used.
"""

from __future__ import annotations

import secrets

from sqlalchemy import and_, select

from gateway.store.admin_users import ABSOLUTE_MS, session_digest
from gateway.store.database import Database
from gateway.store.tables import admin_sessions, admin_users

_NOBODY = ""


async def invite(db: Database, now_ms: int) -> str | None:
    """The secret of a new invitation, valid for twelve hours; None if there is a user already."""
    if await has_admin_user(db):
        return None
    token = secrets.token_urlsafe(32)
    times = {"created_at": now_ms, "seen_at": now_ms, "expires_at": now_ms + ABSOLUTE_MS}
    async with db.begin() as connection:
        await connection.execute(admin_sessions.insert().values(digest=session_digest(token), user=_NOBODY, **times))
    return token


async def is_invited(db: Database, token: str, now_ms: int) -> bool:
    if await has_admin_user(db):
        return False
    table = admin_sessions.c
    condition = and_(table.digest == session_digest(token), table.user == _NOBODY, table.expires_at > now_ms)
    async with db.begin() as connection:
        return (await connection.execute(select(table.digest).where(condition))).first() is not None


async def forget_invitations(db: Database) -> None:
    async with db.begin() as connection:
        await connection.execute(admin_sessions.delete().where(admin_sessions.c.user == _NOBODY))


async def has_admin_user(db: Database) -> bool:
    async with db.begin() as connection:
        return (await connection.execute(select(admin_users.c.name).limit(1))).first() is not None
