"""Addresses and names of this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final

_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, never bound
# A request that was forwarded does not count as local, whoever forwarded it.
_FORWARDING_HEADERS: Final = frozenset({"forwarded", "x-forwarded-for", "x-real-ip", "x-forwarded-host"})


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether a proxy forwarded the request, so that its sender may be anywhere. Header names are in lower case."""
    return not _FORWARDING_HEADERS.isdisjoint(headers)


def local_address(host: str, port: int) -> str:
    """The URL at which this machine reaches a listener on `host` and `port`; empty if the port is not known yet."""
    name = _ANY_ADDRESS.get(host, host)
    host_in_url = f"[{name}]" if ":" in name else name
    return f"http://{host_in_url}:{port}" if port else ""


def host_of(header: str) -> str:
    """The name without the port, for example from `localhost:4000` or `[::1]:4000`."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
