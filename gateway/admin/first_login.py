"""At the start, when somebody will need a login and nobody has one: a one-time link for the first of them, in the log."""

from __future__ import annotations

import sys
from typing import Final

from gateway.admin.invitation import invite
from gateway.endpoints.api.route import Desk
from gateway.store.database import StoreUnavailable

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


async def announce_first_login(desk: Desk) -> None:
    """Written to standard error and to no log file: the log hides what looks like a secret, and this one must be read."""
    server = desk.parts.config.server
    needs_none = desk.access.is_open() and server.host in _LOOPBACK
    if needs_none or not desk.parts.control.snapshot.is_loaded:
        return
    try:
        token = await invite(desk.store, desk.now_ms())
    except StoreUnavailable:
        return  # the next start tells it, and `farebox admin` needs no link
    if token is not None:
        host = f"[{server.host}]" if ":" in server.host else server.host
        address = f"http://{host}:{server.port}" if server.port else ""
        print(f"First admin login, once: {address}/admin/setup?token={token}", file=sys.stderr, flush=True)
