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


async def send_forever(webhook: str, waiting: asyncio.Queue[dict[str, Any]], *, private_allowed: bool) -> None:
    """Run until cancelled. A message that is not accepted is logged and not sent again."""

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
            message = await waiting.get()
            try:
                async with session.post(webhook, json=message, allow_redirects=False) as answer:
                    if answer.status >= 300:
                        _log.warning("alert_not_taken", status=answer.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                _log.warning("alert_not_sent", error=str(error)[:300])
