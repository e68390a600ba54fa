"""How a command reaches the control API: through the running gateway, or by running the same application in this process.

An SQLite file belongs to one process at a time, so a command asks the gateway that holds it, on whatever port that listens, and opens the
file itself if nobody holds it. A Postgres store can be shared, so a command asks the configured gateway if it answers, and otherwise
connects itself. The routes are the same either way.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import orjson

from gateway.config.faults import ConfigError
from gateway.config.schema import Config
from gateway.endpoints.access import OPERATOR_SCOPE, USER_HEADER, Operator, read_operator, store_file
from gateway.ledger.port import LedgerError, LedgerInUse
from gateway.loopback import is_loopback, local_address
from gateway.store.database import StoreError, StoreInUse
from gateway.store.file_lock import is_locked
from gateway.tags import VALUE

_PROBE_S: Final = 2.0
_TIMEOUT_S: Final = 120.0
# A gateway holds its files for a second or two before it answers; on a busy machine for longer.
START_WAIT_S: Final = 5.0
POLL_INTERVAL_S: Final = 0.1


class CommandError(Exception):
    """The command failed. The text is shown to the user."""


@dataclass(frozen=True, slots=True)
class ApiResponse:
    status: int
    body: bytes
    location: str

    @property
    def value(self) -> Any:
        return orjson.loads(self.body)

    def raise_for_error(self) -> ApiResponse:
        """Raises `CommandError` with the API's own sentence."""
        if self.status < 400:
            return self
        try:
            message = str(self.value["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"the gateway answered {self.status}"
        if self.status == 401:
            message = f"{self.location} says: {message} Give it with --key or FAREBOX_ADMIN_KEY."
        raise CommandError(message)


class Connection(Protocol):
    """`path` is relative to /api, and may contain any name, unquoted."""

    location: str

    async def request(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> ApiResponse: ...


class HttpConnection:
    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None) -> None:
        self._session = session
        self._headers = {USER_HEADER: user_name()} | ({"authorization": f"Bearer {key}"} if key else {})
        self.location = url

    async def request(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> ApiResponse:
        address, data = _encoded_request(path, query, body)
        try:
            async with self._session.request(
                method, self.location + address, data=data, headers=self._headers
            ) as reply:
                return ApiResponse(reply.status, await reply.read(), self.location)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise CommandError(
                f"{self.location} cannot be reached: {_error_reason(error)}. Does the gateway run?"
            ) from error


class InProcessConnection:
    """The application inside this process, called without a socket. A user who can open its files needs no key."""

    location = "this process"

    def __init__(self, application: Any) -> None:
        self._application = application

    async def request(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> ApiResponse:
        sent: list[dict[str, Any]] = []
        address, content = _encoded_request(path, query, body)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._application(_asgi_scope(method, path, address), receive, send)
        status = next(message["status"] for message in sent if message["type"] == "http.response.start")
        content = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")
        return ApiResponse(status, content, self.location)


@asynccontextmanager
async def connect(config: Config, *, key: str | None, url: str | None) -> AsyncIterator[Connection]:
    """Raises `CommandError`. Waits for a while if another process holds the embedded files but does not answer: a gateway that is
    starting, or another command."""
    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        deadline_s = time.monotonic() + START_WAIT_S
        result = await _try_connect(session, stack, config, key, url)
        while isinstance(result, Exception):
            if time.monotonic() > deadline_s:
                raise CommandError(
                    f"{result} Retried for {START_WAIT_S:g} s, in case that process was a gateway starting up."
                )
            await asyncio.sleep(POLL_INTERVAL_S)
            result = await _try_connect(session, stack, config, key, url)
        yield result


async def _try_connect(
    session: aiohttp.ClientSession, stack: AsyncExitStack, config: Config, key: str | None, url: str | None
) -> Connection | StoreInUse | LedgerInUse:
    """The connection that is possible now, or why none is."""
    operator = serving_operator(config)
    base = (url or (gateway_url(config) if operator is None else operator.address)).rstrip("/")
    if url or (base and await _is_alive(session, base)):
        token = operator.token if operator is not None and _is_same_gateway(base, operator.address) else None
        return HttpConnection(session, base, key or token)
    file = store_file(config.storage.store)
    # Checking the lock is cheaper than trying to start, and leaves the processor to a gateway that may be starting.
    if file is not None and is_locked(file):
        return StoreInUse(f"The store {file} is used by another process; an SQLite file belongs to one at a time.")
    try:
        return await stack.enter_async_context(_in_process_connection(config))
    except (StoreInUse, LedgerInUse) as error:
        return error


@asynccontextmanager
async def _in_process_connection(config: Config) -> AsyncIterator[Connection]:
    from gateway.app import Application  # only here: it loads LiteLLM's and the tokenizer's tables
    from gateway.observability.logs import set_up_logging

    set_up_logging("console", "error")
    application = Application(config, is_server=False)
    try:
        await application.start()
    except (StoreInUse, LedgerInUse):
        await application.stop()
        raise
    except (ConfigError, StoreError, LedgerError) as error:
        await application.stop()
        raise CommandError(str(error)) from error
    try:
        yield InProcessConnection(application)
    finally:
        await application.stop()


def user_name() -> str:
    """The name of the user who runs the command, for the audit log."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number without a name
        name = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return name if VALUE.match(name) else "unknown"


def gateway_url(config: Config) -> str:
    """The address of the configured gateway as reached from this machine; empty if its port is chosen at start."""
    return local_address(config.server.host, config.server.port)


def serving_operator(config: Config) -> Operator | None:
    """The gateway that holds the embedded store, with the token that lies beside the store's file.

    Its address is empty if no serving process holds the store. None for a store on a server.
    """
    file = store_file(config.storage.store)
    if file is None:
        return None
    operator = read_operator(file)  # a killed process leaves this file behind, hence the lock
    return operator if operator is not None and is_locked(file) else Operator("")


def _is_same_gateway(base: str, address: str) -> bool:
    """Whether both are the same gateway: the local gateway's token must not be sent anywhere else."""
    requested, running = urlsplit(base), urlsplit(address)
    return requested.port == running.port and (
        requested.hostname == running.hostname or is_loopback(requested.hostname or "")
    )


async def _is_alive(session: aiohttp.ClientSession, base: str) -> bool:
    try:
        async with session.get(f"{base}/livez", timeout=aiohttp.ClientTimeout(total=_PROBE_S)) as reply:
            return reply.status == 200 and b"alive" in await reply.content.read(200)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


def _error_reason(error: BaseException) -> str:
    """`Connection refused`, without the details of the attempt."""
    number = getattr(error, "errno", None)
    # TLS and name look-ups have error numbers of their own, and bring their own text.
    if number and number > 0 and not isinstance(error, aiohttp.ClientSSLError):
        return os.strerror(number)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _query_string(query: Mapping[str, Any] | None) -> str:
    parameters = {name: value for name, value in (query or {}).items() if value is not None}
    return f"?{urlencode(parameters)}" if parameters else ""


def quoted_path(path: str) -> str:
    """The path with percent-escapes. The second of two slashes is part of a name, so it is escaped too."""
    return quote(path).replace("//", "/%2F")


def _encoded_request(path: str, query: Mapping[str, Any] | None, body: Any) -> tuple[str, bytes]:
    """Address and body of a request. Raises `CommandError` for values that cannot be sent. Integers of any size
    can: the API checks them."""
    try:
        content = b"" if body is None else json.dumps(body, allow_nan=False, default=str, ensure_ascii=False).encode()
        return f"/api{quoted_path(path)}{_query_string(query)}", content
    except UnicodeEncodeError as error:
        raise CommandError("An argument is not valid UTF-8.") from error
    except ValueError as error:
        raise CommandError("A number must be finite, not inf or nan.") from error
    except TypeError as error:
        raise CommandError("The keys of a mapping must be text.") from error


def _asgi_scope(method: str, path: str, address: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": f"/api{path}",
        "raw_path": address.partition("?")[0].encode(),
        "root_path": "",
        "query_string": address.partition("?")[2].encode(),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        OPERATOR_SCOPE: user_name(),
    }
