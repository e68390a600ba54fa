"""Passwords of the admin UI as argon2id hashes. Both functions take tens of milliseconds by design: call them in a thread."""

from __future__ import annotations

import secrets
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_HASHER: Final = PasswordHasher()


def hash_password(password: str) -> str:
    return _HASHER.hash(password)


def verify_password(stored: str | None, password: str) -> bool:
    """`stored` None: there is no such user, but the check takes as long as if there were."""
    try:
        return _HASHER.verify(_dummy_hash() if stored is None else stored, password)
    except (VerificationError, InvalidHashError):
        return False


@cache
def _dummy_hash() -> str:
    return hash_password(secrets.token_urlsafe(16))
