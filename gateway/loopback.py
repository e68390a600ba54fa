"""Which addresses and names mean this machine."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name without the port: of `localhost:4000`, of `[::1]:4000`."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
