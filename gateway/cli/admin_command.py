"""`farebox admin`: sets the password of a person who uses the admin pages."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from enum import StrEnum
from typing import Annotated, Final, NoReturn

import typer

from gateway.cli.configuration import load_configuration
from gateway.cli.connection import POLL_INTERVAL_S, START_WAIT_S, serving_operator, user_name
from gateway.config.schema import Config
from gateway.endpoints.access import USER_HEADER, Operator
from gateway.store import admin_users, audit
from gateway.store.audit import AuditEvent
from gateway.store.database import Database, StoreError, StoreInUse
from gateway.tags import NAME_IN_WORDS, VALUE

_TIMEOUT_S: Final = 10


class RoleName(StrEnum):
    ADMIN = "admin"
    VIEWER = "viewer"


def admin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The name to log in with at /admin.")] = "admin",
    role: Annotated[RoleName, typer.Option(help="admin may change everything, viewer only look.")] = RoleName.ADMIN,
) -> None:
    """Create a login for the admin pages, or set its password. The password is prompted for, or read from a pipe."""
    config = load_configuration(context.obj)
    if not VALUE.match(name):
        _fail(f"{name!r} is no name for a login: a name is {NAME_IN_WORDS}.")
    password = _read_password()
    if len(password) < admin_users.PASSWORD_CHARACTERS_MIN:
        _fail(f"The password needs at least {admin_users.PASSWORD_CHARACTERS_MIN} characters.")
    deadline_s = time.monotonic() + START_WAIT_S
    while not _try_to_set_password(config, name, password, role.value):
        if time.monotonic() > deadline_s:
            _fail("the store is in use by another farebox command; try again when that is done.")
        time.sleep(POLL_INTERVAL_S)
    typer.echo(f"{name} may log in at /admin as {role.value}.")


def _read_password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


async def _put_user(config: Config, name: str, password: str, role: str) -> None:
    store = Database(config.storage.store)
    now_ms = time.time_ns() // 1_000_000
    await store.open()
    try:
        if store.is_postgres:
            await store.check_schema()
        else:
            await store.migrate(now_ms)
        await admin_users.put_user(store, name, password, role, now_ms)
        event = AuditEvent(now_ms, f"cli:{user_name()}", "admin.person_set", name, detail={"role": role})
        await audit.append(store, [event])
    finally:
        await store.close()


def _try_to_set_password(config: Config, name: str, password: str, role: str) -> bool:
    """Set the password. False while another process holds the store without serving (yet)."""
    try:
        asyncio.run(_put_user(config, name, password, role))
    except StoreInUse:
        operator = serving_operator(config)
        if operator is None or not operator.address:
            return False
        _set_through_gateway(operator, name, password, role)
    except (StoreError, ValueError) as error:
        _fail(str(error))
    return True


def _set_through_gateway(operator: Operator, name: str, password: str, role: str) -> None:
    """Ask the gateway that holds the embedded store to do it, with the operator's token from beside the store's file."""
    form = urllib.parse.urlencode({"name": name, "password": password, "role": role}).encode()
    try:
        headers = {"authorization": f"Bearer {operator.token}", USER_HEADER: user_name()}
        request = urllib.request.Request(
            f"http://{urllib.parse.urlsplit(operator.address).netloc}/admin/people", form, headers
        )
        # Ignore proxies of the environment: the token must not leave this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        opener.open(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 303:
            _fail(f"the gateway refused it with status {error.code}.")
    except OSError as error:
        _fail(f"the store is in use by a gateway that cannot be reached: {error}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Does not follow the redirect after a form, which is meant for browsers."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"farebox: {sentence}", err=True)
    raise typer.Exit(1)
