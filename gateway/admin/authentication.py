"""Authentication for the admin pages.

    request                                          is let in as
    ---------------------------------------------    -------------------------------
    a session cookie                                 its user, with the user's role
    an admin or viewer key in Authorization          the key, with the key's role
    anybody on this machine, while there is no key   local, with the role admin
    anybody else                                     redirected to the login

A form that changes something must come from one of our own pages. Browsers say where it comes from (Sec-Fetch-Site, Origin), so forms
carry no CSRF token. Programs that authenticate with a key are exempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from cachetools import TTLCache
from starlette.requests import Request

from gateway.endpoints.access import Access, Actor, Role, is_local
from gateway.errors import AuthenticationFailed, Overloaded
from gateway.pipeline.intake import credential_of
from gateway.store import admin_users
from gateway.store.admin_users import AdminUser
from gateway.store.database import Database

SESSION_COOKIE: Final = "farebox_session"
# For one name from one address. Many people may share an address, as behind a proxy, and anybody may know a name, so the limits for an
# address or a name alone are far above what people do by mistake. They still bound guessing from one machine, or at one name.
FAILURES_PER_SOURCE_MAX: Final = 10
_FAILURES_PER_ADDRESS_OR_NAME_MAX: Final = 100
_FAILURES_WINDOW_S: Final = 300
_SOURCES_MAX: Final = 10_000
# Checking a password takes 64 MiB and tens of milliseconds by design, so only so many are checked at once.
_CONCURRENT_HASHES_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class Identity:
    actor: Actor
    authenticated_by: Literal["local", "session", "key"]


class Authenticator:
    def __init__(
        self, access: Access, store: Database, *, clock_ms: Callable[[], int], timer_s: Callable[[], float]
    ) -> None:
        self._access = access
        self._store = store
        self._clock_ms = clock_ms
        self._failures: TTLCache[tuple[str, ...], int] = TTLCache(_SOURCES_MAX, _FAILURES_WINDOW_S, timer_s)
        self._hashing = asyncio.Semaphore(_CONCURRENT_HASHES_MAX)

    async def authenticate(self, request: Request) -> Identity | None:
        """None: a login is needed. Raises StoreUnavailable, and `Access.check`'s errors for a key that is no admin key."""
        token = request.cookies.get(SESSION_COOKIE)
        session = await admin_users.find_session(self._store, token, self._clock_ms()) if token else None
        if session is not None:
            return Identity(Actor(session.user.name, cast(Role, session.user.role)), "session")
        # Before "local", which is for browsers: a program that sends a credential cannot have been sent here by another site's page.
        if credential_of(request.headers) is not None:
            return Identity(self._access.check(request, "viewer"), "key")
        return Identity(Actor("local", "admin"), "local") if self.is_open_to(request) else None

    def is_open_to(self, request: Request) -> bool:
        return self._access.is_open() and is_local(request)

    async def log_in(self, request: Request, name: str, password: str) -> str:
        """The value of a new session's cookie. Raises `Overloaded` for a source that guesses, else `AuthenticationFailed`."""
        user = await self._check_password(request, name, password)
        if user is None:
            raise AuthenticationFailed("The name or the password is wrong.")
        return await self.open_session(user)

    async def open_session(self, user: AdminUser) -> str:
        return await admin_users.open_session(self._store, user, self._clock_ms())

    async def log_out(self, request: Request) -> None:
        token = request.cookies.get(SESSION_COOKIE)
        if token:
            await admin_users.close_session(self._store, token)

    async def _check_password(self, request: Request, name: str, password: str) -> AdminUser | None:
        by_address, by_name = f"from {request.client.host if request.client else ''}", f"for {name[:128]}"
        sources = {
            (by_address, by_name): FAILURES_PER_SOURCE_MAX,
            (by_address,): _FAILURES_PER_ADDRESS_OR_NAME_MAX,
            (by_name,): _FAILURES_PER_ADDRESS_OR_NAME_MAX,
        }
        self._refuse_guesses(sources)
        async with self._hashing:
            # Again: guesses that were sent all at once have passed the first look, and wait here while others fail.
            self._refuse_guesses(sources)
            user = await admin_users.check_password(self._store, name, password)
            if user is None:
                for source in sources:
                    self._failures[source] = self._failures.get(source, 0) + 1
        return user

    def _refuse_guesses(self, sources: Mapping[tuple[str, ...], int]) -> None:
        """Raises `Overloaded` if any of the sources has failed as often as it may."""
        if any(self._failures.get(source, 0) >= failures_max for source, failures_max in sources.items()):
            raise Overloaded(
                "Too many wrong logins. Try again in five minutes.",
                code="too_many_attempts",
                headers={"retry-after": str(_FAILURES_WINDOW_S)},
            )


def is_own_form(request: Request) -> bool:
    """Whether the request comes from one of our own pages."""

    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] == request.headers.get("host")
