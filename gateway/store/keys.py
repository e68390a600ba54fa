"""API keys: shown once, stored as SHA-256, and told from junk without a look-up.

A key is `fb_`, 32 random bytes in base62 and their CRC-32 in base62. 256 random bits need no slow hash, because they cannot
be guessed. The checksum only keeps typing errors and probes away from the look-up.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import select

from gateway.config.budgets import UNITS
from gateway.store.database import Database, StoreConnection
from gateway.store.tables import api_keys
from gateway.store.versions import Subject, raise_version

PREFIX: Final = "fb_"
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BYTES: Final = 32
_BODY_CHARACTERS: Final = 43  # 62^43 > 2^256
_CHECK_CHARACTERS: Final = 6  # 62^6 > 2^32
_CHARACTERS: Final = len(PREFIX) + _BODY_CHARACTERS + _CHECK_CHARACTERS
# Enough to recognise a key in a list, too little to guess the rest: 35 of 43 random characters stay unknown.
_SHOWN_CHARACTERS: Final = len(PREFIX) + 8


class KeyNameTaken(Exception):
    """Another key of the project has this name, and one of the two has a budget of its own."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key. `role` is admin or viewer for the control API, empty for a key that only calls models."""

    id: str
    name: str
    project: str
    prefix: str
    digest: str
    admin: bool = False
    role: str = ""
    workflow: str = ""
    agent: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)  # step, user, priority
    allowed_models: tuple[str, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    created_at_ms: int = 0
    created_by: str = ""
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None
    old_digest: str | None = None
    old_until_ms: int | None = None

    @property
    def has_budget(self) -> bool:
        """Whether tokens, money or requests are limited; a window or concurrency alone has no account."""
        return any(self.limits.get(unit) is not None for unit in UNITS)

    def is_valid(self, digest: str, now_ms: int) -> bool:
        """Whether the key with this digest may be used now: not revoked, not expired, and not an old one past its grace period."""
        if self.revoked_at_ms is not None and self.revoked_at_ms <= now_ms:
            return False
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return False
        if secrets.compare_digest(digest, self.digest):
            return True
        is_old = self.old_digest is not None and secrets.compare_digest(digest, self.old_digest)
        return is_old and self.old_until_ms is not None and now_ms < self.old_until_ms


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key. This is the only time that the plain key exists."""

    plain: str
    key: ApiKey


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """The properties of a key to be made. An admin key has the role admin unless another is given."""

    name: str
    project: str = "default"
    admin: bool = False
    role: str = ""
    workflow: str = ""
    agent: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    allowed_models: tuple[str, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    expires_at_ms: int | None = None


def make_plain_key(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    body = _base62(int.from_bytes(random_bytes(_RANDOM_BYTES)), _BODY_CHARACTERS)
    return PREFIX + body + _checksum(body)


def looks_like_key(text: str) -> bool:
    """Whether it has the form and checksum of a key. Any other text is refused without a look-up."""
    if len(text) != _CHARACTERS or not text.startswith(PREFIX) or not text.isascii():
        return False
    body = text[len(PREFIX) : -_CHECK_CHARACTERS]
    return _checksum(body) == text[-_CHECK_CHARACTERS:]


def digest_of(plain_key: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(plain_key.encode()).hexdigest()


async def create(db: Database, request: KeyRequest, actor: str, now_ms: int) -> NewKey:
    """Make a key and store its digest. Raises KeyNameTaken, StoreUnavailable."""
    plain_key = make_plain_key()
    key = ApiKey(
        id="key_" + secrets.token_hex(8),
        name=request.name,
        project=request.project,
        prefix=plain_key[:_SHOWN_CHARACTERS],
        digest=digest_of(plain_key),
        admin=request.admin,
        role=request.role or ("admin" if request.admin else ""),
        workflow=request.workflow,
        agent=request.agent,
        tags=request.tags,
        allowed_models=request.allowed_models,
        limits=request.limits,
        created_at_ms=now_ms,
        created_by=actor,
        expires_at_ms=request.expires_at_ms,
    )
    async with db.begin() as connection:
        await raise_version(connection, Subject.KEYS)  # first, so that a concurrent creation waits
        await _check_name(connection, key)
        await connection.execute(api_keys.insert().values(**_to_row(key)))
    return NewKey(plain_key, key)


async def list_all(db: Database, project: str | None = None) -> list[ApiKey]:
    """All keys, including revoked ones, newest first."""
    query = select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id)
    if project is not None:
        query = query.where(api_keys.c.project == project)
    async with db.begin() as connection:
        return [_from_row(row) for row in (await connection.execute(query)).mappings()]


async def change(db: Database, key_id: str, edited: Callable[[ApiKey], ApiKey]) -> ApiKey | None:
    """Replace the key by what `edited` makes of it; its id, name, secret and role stay. Running calls keep what they were admitted with.

    Returns None if there is no such key or it is revoked. Raises KeyNameTaken.
    """
    async with db.begin() as connection:
        key = await _locked(connection, key_id)
        if key is None or key.revoked_at_ms is not None:
            return None
        await raise_version(connection, Subject.KEYS)  # before comparing names, so that a concurrent creation waits
        changed = edited(key)
        await _check_name(connection, changed)
        row = _to_row(changed)
        values = {name: row[name] for name in _CHANGEABLE}
        await connection.execute(api_keys.update().where(api_keys.c.id == key_id).values(**values))
        return await _locked(connection, key_id)


_CHANGEABLE: Final = ("workflow", "agent", "tags", "allowed_models", "limits", "expires_at")


async def revoke(db: Database, key_id: str, now_ms: int) -> ApiKey | None:
    """Revoke a key. All processes refuse it within the poll interval of `control`. Returns None if there is no such key."""
    async with db.begin() as connection:
        key = await _locked(connection, key_id)
        if key is None:
            return None
        if key.revoked_at_ms is None:
            condition = api_keys.c.id == key_id
            await connection.execute(api_keys.update().where(condition).values(revoked_at=now_ms))
            await raise_version(connection, Subject.KEYS)
        return await _locked(connection, key_id)


async def rotate(db: Database, key_id: str, now_ms: int, grace_ms: int = 0) -> NewKey | None:
    """Give the key a new secret; its budgets and history stay. The old secret works for another `grace_ms`.

    Returns None if there is no such key or it is revoked.
    """
    plain_key = make_plain_key()
    async with db.begin() as connection:
        key = await _locked(connection, key_id)
        if key is None or key.revoked_at_ms is not None:
            return None
        old = {"old_digest": key.digest, "old_until": now_ms + grace_ms} if grace_ms > 0 else _NO_OLD
        new = {"digest": digest_of(plain_key), "prefix": plain_key[:_SHOWN_CHARACTERS]}
        await connection.execute(api_keys.update().where(api_keys.c.id == key_id).values(**new, **old))
        await raise_version(connection, Subject.KEYS)
        rotated = await _locked(connection, key_id)
    return None if rotated is None else NewKey(plain_key, rotated)


_NO_OLD: Final = {"old_digest": None, "old_until": None}


async def _check_name(connection: StoreConnection, key: ApiKey) -> None:
    """Several keys may share a name, unless one of them has a budget of its own: accounts are named after keys, so all would spend it."""
    if key.role:
        return
    row = api_keys.c
    namesakes = (
        row.project == key.project,
        row.name == key.name,
        row.role == "",
        row.revoked_at.is_(None),
        row.id != key.id,
    )
    same_named = [
        _from_row(other_key) for other_key in (await connection.execute(select(api_keys).where(*namesakes))).mappings()
    ]
    if same_named and any(other_key.has_budget for other_key in (key, *same_named)):
        raise KeyNameTaken


async def _locked(connection: StoreConnection, key_id: str) -> ApiKey | None:
    query = select(api_keys).where(api_keys.c.id == key_id).with_for_update()
    row = (await connection.execute(query)).mappings().first()
    return None if row is None else _from_row(row)


def _to_row(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project,
        "digest": key.digest,
        "prefix": key.prefix,
        "admin": key.admin,
        "role": key.role,
        "workflow": key.workflow,
        "agent": key.agent,
        "tags": orjson.dumps(key.tags).decode(),
        "allowed_models": orjson.dumps(key.allowed_models).decode(),
        "limits": orjson.dumps(key.limits).decode(),
        "created_at": key.created_at_ms,
        "created_by": key.created_by,
        "expires_at": key.expires_at_ms,
    }


def _from_row(row: Mapping[Any, Any]) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        project=row["project"],
        prefix=row["prefix"],
        digest=row["digest"],
        admin=row["admin"],
        role=row["role"],
        workflow=row["workflow"],
        agent=row["agent"],
        tags=orjson.loads(row["tags"] or "{}"),
        allowed_models=tuple(orjson.loads(row["allowed_models"] or "[]")),
        limits=orjson.loads(row["limits"] or "{}"),
        created_at_ms=row["created_at"],
        created_by=row["created_by"],
        expires_at_ms=row["expires_at"],
        revoked_at_ms=row["revoked_at"],
        old_digest=row["old_digest"],
        old_until_ms=row["old_until"],
    )


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_CHARACTERS)


def _base62(number: int, characters: int) -> str:
    digits = []
    for _ in range(characters):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
