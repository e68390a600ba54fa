"""Prints a one-time link at the start of a gateway whose admin pages need a login while there is no user yet."""

from __future__ import annotations

import sys

from gateway.config.schema import ServerConfig
from gateway.store.database import Database, StoreUnavailable
from gateway.store.invitations import invite


async def print_first_login_link(server: ServerConfig, store: Database, now_ms: int) -> None:
    """Written to standard error and to no log file: the log hides what looks like a secret, and this one must be read."""
    try:
        token = await invite(store, now_ms)
    except StoreUnavailable:
        return  # the next start prints a link, and `farebox admin` needs none
    if token is not None:
        host = f"[{server.host}]" if ":" in server.host else server.host
        address = f"http://{host}:{server.port}" if server.port else ""
        print(f"First admin login, once: {address}/admin/setup?token={token}", file=sys.stderr, flush=True)
