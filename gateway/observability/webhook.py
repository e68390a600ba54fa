"""Sends alerts to the address in the configuration, and to no other."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, Final

import aiohttp
import structlog

from gateway.addresses import fault_of_address

_log = structlog.get_logger(__name__)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
# Before each further try. Long enough together for a receiver to be restarted.
_PAUSES_S: Final = (1.0, 5.0, 25.0)
_TOO_MANY_REQUESTS: Final = 429


async def send_forever(webhook: str, waiting: asyncio.Queue[dict[str, Any]], *, private_allowed: bool) -> None:
    """Run until cancelled. What cannot be delivered in four tries is logged and given up, so that the next one gets its turn."""

    def checked_socket(info: aiohttp.AddrInfoType) -> socket.socket:
        """Called for the actual address of a connection, after all name resolution."""
        family, kind, protocol, _, address = info
        fault = fault_of_address(str(address[0]), private_allowed=private_allowed)
        if fault is not None:
            raise OSError(errno.EACCES, f"alerts.webhook leads to a forbidden place: {fault}")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(socket_factory=checked_socket)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, trust_env=False) as session:
        while True:
            await _deliver(session, webhook, await waiting.get())


async def _deliver(session: aiohttp.ClientSession, webhook: str, message: dict[str, Any]) -> None:
    for pause_s in _PAUSES_S:
        if await _is_done(session, webhook, message, retry_in_s=pause_s):
            return
        await asyncio.sleep(pause_s)
    await _is_done(session, webhook, message, retry_in_s=None)


async def _is_done(
    session: aiohttp.ClientSession, webhook: str, message: dict[str, Any], *, retry_in_s: float | None
) -> bool:
    """Try once. True: the receiver has taken the message, or would never take it."""
    try:
        async with session.post(webhook, json=message, allow_redirects=False) as answer:
            status = answer.status
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error)[:300] or f"no answer within {_TIMEOUT.total} s"
        _log.warning("alert_not_sent", alert=message["event"], error=reason, retry_in_s=retry_in_s)
        return False
    is_passing = status >= 500 or status == _TOO_MANY_REQUESTS
    if status >= 300:
        retry_in_s = retry_in_s if is_passing else None
        _log.warning("alert_not_taken", alert=message["event"], status=status, retry_in_s=retry_in_s)
    return not is_passing
