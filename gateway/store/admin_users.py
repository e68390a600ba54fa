"""Users of the admin UI with argon2id hashes, and their server-side sessions.

A session is 32 random bytes in a cookie, of which this table has the SHA-256, so that reading the table does not give access.
It ends after a time without use, at the latest after a fixed time, and at once on logout or when its user is disabled or gets
a new password.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import or_, select

from gateway.store.bulk import insert, replace_on_conflict
from gateway.store.database import Database, StoreError
from gateway.store.tables import admin_sessions, admin_users

ROLES: Final = ("admin", "viewer")
IDLE_MS: Final = 30 * 60_000
ABSOLUTE_MS: Final = 12 * 3_600_000
# A session's last use is written at most this often, so that reading a page does not cost a write.
SEEN_EVERY_MS: Final = 60_000
PASSWORD_CHARACTERS_MIN: Final = 12


class WeakPassword(StoreError):
    """The password is too short."""


@dataclass(frozen=True, slots=True)
class AdminUser:
    name: str
    role: str
    created_at_ms: int = 0
    disabled_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class AdminSession:
    user: AdminUser
    created_at_ms: int
    expires_at_ms: int


async def put_user(db: Database, name: str, password: str, role: str, now_ms: int) -> AdminUser:
    """Make a user, or give one a new password and role, which ends its sessions. Raises WeakPassword, ValueError for a role."""
    if role not in ROLES:
        raise ValueError(f"'{role}' is not a role; there are {', '.join(ROLES)}")
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise WeakPassword(f"The password needs at least {PASSWORD_CHARACTERS_MIN} characters.")
    password_hash = await asyncio.to_thread(_hash_password, password)
    row = {"name": name, "role": role, "password_hash": password_hash, "created_at": now_ms, "disabled_at": None}
    async with db.begin() as connection:
        names = ("role", "password_hash", "disabled_at")
        await insert(connection, admin_users, [row], replace_on_conflict(admin_users, names))
        await connection.execute(admin_sessions.delete().where(admin_sessions.c.user == name))
    return AdminUser(name, role, now_ms)


async def list_users(db: Database) -> list[AdminUser]:
    async with db.begin() as connection:
        rows = await connection.execute(select(admin_users).order_by(admin_users.c.name))
        return [_user(row) for row in rows.mappings()]


async def disable_user(db: Database, name: str, now_ms: int) -> bool:
    """Disable a user and end its sessions. Returns whether the user exists."""
    async with db.begin() as connection:
        condition = admin_users.c.name == name
        result = await connection.execute(admin_users.update().where(condition).values(disabled_at=now_ms))
        await connection.execute(admin_sessions.delete().where(admin_sessions.c.user == name))
    return result.rowcount > 0


async def check_password(db: Database, name: str, password: str) -> AdminUser | None:
    """The user; None for a wrong name or password alike, after the same time. The caller has to throttle guesses."""
    async with db.begin() as connection:
        row = (await connection.execute(select(admin_users).where(admin_users.c.name == name))).mappings().first()
    stored = None if row is None else row["password_hash"]
    is_match = await asyncio.to_thread(_verify_password, stored, password)
    if row is None or not is_match or row["disabled_at"] is not None:
        return None
    return _user(row)


async def open_session(db: Database, user: AdminUser, now_ms: int) -> str:
    """Returns the cookie's value, which is stored nowhere. It is always new, which prevents session fixation."""
    token = secrets.token_urlsafe(32)
    row = {
        "digest": session_digest(token),
        "user": user.name,
        "created_at": now_ms,
        "seen_at": now_ms,
        "expires_at": now_ms + ABSOLUTE_MS,
    }
    async with db.begin() as connection:
        await connection.execute(admin_sessions.insert().values(**row))
    return token


async def find_session(db: Database, token: str, now_ms: int) -> AdminSession | None:
    """The session, kept alive by this use; None if it is unknown, was idle too long, has ended, or its user is disabled."""
    digest = session_digest(token)
    joined = admin_sessions.join(admin_users, admin_users.c.name == admin_sessions.c.user)
    columns = (
        admin_sessions.c.created_at.label("opened_at"),
        admin_sessions.c.seen_at,
        admin_sessions.c.expires_at,
        admin_users,
    )
    query = select(*columns).select_from(joined).where(admin_sessions.c.digest == digest)
    async with db.begin() as connection:
        row = (await connection.execute(query)).mappings().first()
        if row is None or row["disabled_at"] is not None:
            return None
        if now_ms >= row["expires_at"] or now_ms - row["seen_at"] >= IDLE_MS:
            await connection.execute(admin_sessions.delete().where(admin_sessions.c.digest == digest))
            return None
        if now_ms - row["seen_at"] >= SEEN_EVERY_MS:
            condition = admin_sessions.c.digest == digest
            await connection.execute(admin_sessions.update().where(condition).values(seen_at=now_ms))
    return AdminSession(_user(row), row["opened_at"], row["expires_at"])


async def close_session(db: Database, token: str) -> None:
    async with db.begin() as connection:
        await connection.execute(admin_sessions.delete().where(admin_sessions.c.digest == session_digest(token)))


async def forget_ended(db: Database, now_ms: int) -> int:
    """Delete ended sessions. Returns how many."""
    over = or_(admin_sessions.c.expires_at <= now_ms, admin_sessions.c.seen_at <= now_ms - IDLE_MS)
    async with db.begin() as connection:
        result = await connection.execute(admin_sessions.delete().where(over))
    return result.rowcount


# argon2 is imported by the first login, because most gateways never have one.


def _hash_password(password: str) -> str:
    from gateway.store.passwords import hash_password

    return hash_password(password)


def _verify_password(stored: str | None, password: str) -> bool:
    from gateway.store.passwords import verify_password

    return verify_password(stored, password)


def session_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _user(row: Any) -> AdminUser:
    return AdminUser(row["name"], row["role"], row["created_at"], row["disabled_at"])
