"""Finds the credentials in a configuration, and removes them from what a provider says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from gateway.upstream.port import Deployment

_SECRET_NAMES: Final = re.compile(r"key|token|secret|password|credential|authorization", re.I)
# A shorter value may be an ordinary word, which a provider can say for other reasons.
_CHARACTERS_MIN: Final = 8


def secrets_in(fields: Mapping[str, Any]) -> set[str]:
    """Values of fields that are named like credentials, and passwords in URLs, at any depth."""
    secrets: set[str] = set()
    for name, value in fields.items():
        if isinstance(value, Mapping):
            secrets |= secrets_in(value)
        elif isinstance(value, str):
            secrets |= {value} if _SECRET_NAMES.search(name) else password_in(value)
    return secrets


def password_in(url: str) -> set[str]:
    """The URL's password, both as written and percent-decoded; empty if it has none or is not a URL."""
    try:
        password = urlsplit(url).password if "://" in url else None
    except ValueError:
        return set()
    return {password, unquote(password)} if password else set()


def secrets_of(deployment: Deployment, key: str | None) -> tuple[str, ...]:
    """The secrets that must not reach a client in this deployment's answers, longest first. `key` is the one that was sent."""
    values = secrets_in(deployment.params) | ({key} if key else set())
    return tuple(sorted((value for value in values if len(value) >= _CHARACTERS_MIN), key=len, reverse=True))


def redact(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
