"""Access to the control API and the admin pages: who may do what, and under which name.

    caller                                           look    change
    ---------------------------------------------    -----   --------
    anonymous, or a wrong key                        401     401
    a key that only calls models                     403     403
    a key with the role viewer                       yes     403
    a key with the role admin, FAREBOX_ADMIN_KEY     yes     yes
    the operator on this machine                     yes     yes
    anybody on this machine, while there is no key   yes     yes

Looking covers GET, and the requests that change nothing: classify, allocate and explain.

The operator is whoever can read the file of the embedded store anyway: the command line, which finds this process's token beside that
file, or runs the same routes in its own process.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cachetools import TTLCache
from starlette.requests import HTTPConnection

from gateway.config.faults import ConfigError
from gateway.control import Snapshot
from gateway.errors import AuthenticationFailed, KeysUnknown, Overloaded, PermissionDenied
from gateway.loopback import host_of, is_forwarded, is_loopback
from gateway.pipeline.intake import credential_of
from gateway.store.database import StoreError
from gateway.tags import VALUE

Role = Literal["admin", "viewer"]

ADMIN_KEY_VARIABLE: Final = "FAREBOX_ADMIN_KEY"
# Shorter secrets can be guessed despite throttling; "sk-1234" of other gateways' examples is one. The Helm chart has the same minimum.
ADMIN_KEY_CHARACTERS_MIN: Final = 8
# A key of this length or more cannot be found by guessing, so it is exempt from throttling.
_UNGUESSABLE_CHARACTERS: Final = 24
# Set in the ASGI scope by the command line when it runs the routes in its own process. A server never sets it.
OPERATOR_SCOPE: Final = "farebox.operator"
# The name of the user at the command line, for the audit log. It grants nothing.
USER_HEADER: Final = "x-farebox-user"
_FAILURES_MAX: Final = 20
_FAILURES_WINDOW_S: Final = 60
_SOURCES_MAX: Final = 10_000
_OWN_PAGES: Final = (None, "same-origin", "none")
_MISSING: Final = "Send an admin key: Authorization: Bearer fb_… (make one with `farebox keys create --admin`)."


@dataclass(frozen=True, slots=True)
class Actor:
    """Who performs an action, under the name that the audit log shows."""

    name: str
    role: Role


class Access:
    """`admin_key` is FAREBOX_ADMIN_KEY as it was at start, `operator_token` the one of `OperatorFile`. Empty: there is none."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        admin_key: str = "",
        operator_token: str = "",
        clock_ms: Callable[[], int],
        timer_s: Callable[[], float],
    ) -> None:
        self._snapshot = snapshot
        self._admin_key = admin_key.encode()
        self._operator_token = operator_token.encode()
        self._clock_ms = clock_ms
        self._failures: TTLCache[str, int] = TTLCache(_SOURCES_MAX, _FAILURES_WINDOW_S, timer_s)

    def check(self, request: HTTPConnection, needed: Role) -> Actor:
        """Authenticate a request for a role. Raises `AuthenticationFailed`, `PermissionDenied`, or `Overloaded` after many wrong keys."""
        actor = self._actor(request)
        if needed == "admin" and actor.role != "admin":
            raise PermissionDenied("This key may only look (role viewer); changes need an admin key.")
        return actor

    def is_open(self) -> bool:
        """Whether no key is configured, so that requests from this machine need none."""
        snapshot = self._snapshot()
        return snapshot.is_loaded and not snapshot.keys and not self._admin_key

    def _actor(self, request: HTTPConnection) -> Actor:
        operator = request.scope.get(OPERATOR_SCOPE)
        if operator:
            return Actor(f"cli:{operator}", "admin")
        user = _user(request.headers)
        credential = credential_of(request.headers)
        if self.is_open() and is_local(request):
            return Actor(f"cli:{user}" if user else "local", "admin")
        if credential is None:
            raise AuthenticationFailed(_MISSING)
        actor = self._known(credential, _source(request))
        return Actor(f"{actor.name}/{user}", actor.role) if user else actor

    def _known(self, credential: str, source: str) -> Actor:
        key = self._snapshot().find_key(credential, self._clock_ms())
        if key is not None:
            if key.role not in ("admin", "viewer"):
                raise PermissionDenied("This key calls models; the control API needs an admin key.")
            return Actor(key.name, "admin" if key.role == "admin" else "viewer")
        # Keys of the store and the operator's token have 256 random bits and need no protection from guessing; short chosen keys do.
        # Behind a proxy all clients may share one address, and wrong keys from there must not lock out valid ones.
        if _equal(credential, self._operator_token):
            return Actor("operator", "admin")
        is_admin_key = _equal(credential, self._admin_key)
        if is_admin_key and len(self._admin_key) >= _UNGUESSABLE_CHARACTERS:
            return Actor("environment", "admin")
        failures = self._failures.get(source, 0)
        if failures >= _FAILURES_MAX:
            raise Overloaded("Too many wrong keys from this address.", code="too_many_attempts", headers=_LATER)
        if is_admin_key:
            return Actor("environment", "admin")
        self._failures[source] = failures + 1
        if not self._snapshot().is_loaded:
            raise KeysUnknown
        raise AuthenticationFailed("The API key is unknown, revoked or expired.")


_LATER: Final = {"retry-after": str(_FAILURES_WINDOW_S)}


def is_local(request: HTTPConnection) -> bool:
    """Whether a request comes from a program on this machine: over loopback, to a loopback host name, and not from another site's page.

    Checking the host name guards against DNS rebinding, checking the origin against cross-site forms.
    """
    if not is_loopback(_source(request)) or not is_loopback(host_of(request.headers.get("host", ""))):
        return False
    if is_forwarded(request.headers):
        return False
    origin = request.headers.get("origin")
    is_own = origin is None or origin.partition("://")[2] == request.headers.get("host")
    return is_own and request.headers.get("sec-fetch-site") in _OWN_PAGES


def check_binding(host: str, snapshot: Snapshot, *, admin_key: str, allow_anonymous: bool) -> None:
    """Check before serving that the address is not open to strangers. Raises `ConfigError` if anybody who reaches it could call models
    anonymously, or if the admin key is short enough to guess."""
    if admin_key and len(admin_key) < ADMIN_KEY_CHARACTERS_MIN:
        raise ConfigError([f"{ADMIN_KEY_VARIABLE} must have at least {ADMIN_KEY_CHARACTERS_MIN} characters."])
    if allow_anonymous or is_loopback(host) or admin_key or snapshot.keys or not snapshot.is_loaded:
        return
    raise ConfigError(
        [
            f"Farebox does not listen on {host} without API keys: make one with `farebox keys create --admin`, "
            f"set {ADMIN_KEY_VARIABLE}, or say --allow-anonymous."
        ]
    )


@dataclass(frozen=True, slots=True)
class Operator:
    """How the command line reaches the process that holds an embedded store. `address` is empty unless that process serves."""

    token: str
    address: str = ""


class OperatorFile:
    """The file with the `Operator`, beside the file of an embedded store and readable only by its owner. Removed at exit."""

    @classmethod
    def of_store(cls, url: str) -> OperatorFile:
        """The file for a store's URL. A store on a server has none: whoever may administer it can connect to it."""
        return cls(store_file(url))

    def __init__(self, file: Path | None) -> None:
        self._path = None if file is None else operator_file(file)
        self.token = "" if file is None else secrets.token_urlsafe(32)

    def write(self, address: str = "") -> None:
        """Write the file. Call it only while holding the store's lock, whose holder owns this file, too. Raises StoreError."""
        if self._path is None or not self._path.parent.is_dir():
            return
        try:
            self._path.unlink(missing_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{self.token}\n{address}")
        except OSError as error:
            raise StoreError(
                f"The store's folder {self._path.parent} cannot be written ({error.strerror}): free some space, give this user the right "
                "to, or name another file in storage.store."
            ) from error

    def remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def store_file(url: str) -> Path | None:
    """The embedded store's file. None for a store on a server."""
    path = url.removeprefix("sqlite:///")
    return Path(path) if path != url and path else None


def operator_file(file: Path) -> Path:
    return file.with_name(file.name + ".operator")


def read_operator(file: Path) -> Operator | None:
    """The operator of a store's file, or None if there is none or it cannot be read."""
    try:
        token, _, address = operator_file(file).read_text(encoding="ascii").partition("\n")
    except OSError:
        return None
    return Operator(token, address) if token else None


def _equal(credential: str, expected: bytes) -> bool:
    """Compare in constant time. An empty known value equals nothing."""
    return bool(expected) and secrets.compare_digest(credential.encode(), expected)


def _user(headers: Mapping[str, str]) -> str:
    user = headers.get(USER_HEADER, "")
    return user if VALUE.match(user) else ""


def _source(request: HTTPConnection) -> str:
    return request.client.host if request.client else ""
