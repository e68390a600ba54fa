"""Where the gateway itself may connect to, beside its models: not to what only somebody inside of its network should reach.

Addresses are judged when a URL is read, and again when a connection is made, on the address that is really connected to: a
name that meant another host a moment ago gains nothing. `ipaddress.is_global` is no help here: it lets translated addresses
of a cloud's metadata service pass (64:ff9b::a9fe:a9fe, 192.0.0.192).
"""

from __future__ import annotations

import socket
import unicodedata
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(one) for one in text.split())


# No webhook lives there: link-local (which is where clouds keep credentials), the metadata services elsewhere (Alibaba,
# Oracle, Azure, AWS over IPv6), "this" network, multicast, reserved.
_NEVER: Final = _networks(
    "169.254.0.0/16 fe80::/10 100.100.100.200/32 192.0.0.192/32 168.63.129.16/32 fd00:ec2::254/128 fd20:ce::254/128"
    " 0.0.0.0/8 224.0.0.0/4 240.0.0.0/4 ff00::/8 ::/128 100::/64 2001:db8::/32 192.0.2.0/24 198.51.100.0/24 203.0.113.0/24"
)
# One's own machine and network: often meant, never by accident.
_PRIVATE: Final = _networks(
    "127.0.0.0/8 ::1/128 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 192.0.0.0/24 198.18.0.0/15 fc00::/7 fec0::/10"
)
# IPv6 addresses that carry an IPv4 one, and where in them it stands (bits from the right).
_CARRIERS: Final = (
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("64:ff9b:1::/48"), 0),
    (IPv6Network("2002::/16"), 80),
)
_TEREDO: Final = IPv6Network("2001::/32")


def fault_of_address(text: str, *, private_allowed: bool) -> str | None:
    """Why nothing may be sent to this IP address; None if it may."""
    address = _carried(ip_address(text.partition("%")[0]))
    if address in _TEREDO or any(address in network for network in _NEVER):
        return f"{text} is an address that no webhook has (link-local, a cloud's metadata service, or reserved)"
    if not private_allowed and any(address in network for network in _PRIVATE):
        return f"{text} is an address of this machine or of a private network"
    return None


def fault_of_url(url: str, *, private_allowed: bool) -> str | None:
    """Why this URL cannot be meant, as far as it can be told without asking anybody where its host is; None if it can."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return "it is not a URL"
    if parts.scheme not in ("http", "https") or not host:
        return "it must begin with https:// (or http:// for a host of your own) and name a host"
    address = _address_in(host)
    if address is None:
        is_own = host == "localhost" or host.endswith(".localhost")
        return f"{host} is this machine" if is_own and not private_allowed else None
    return fault_of_address(address, private_allowed=private_allowed)


def _carried(address: Address) -> Address:
    """The IPv4 address inside of an IPv6 one, where there is one."""
    if isinstance(address, IPv6Address) and int(address) > 1:
        for network, shift in _CARRIERS:
            if address in network:
                return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return address


def _address_in(host: str) -> str | None:
    """The address that a host's text is, in any spelling that a resolver takes: 127.1, 0x7f.1, 2130706433, ①②⑦.⓪.⓪.①."""
    plain = unicodedata.normalize("NFKC", host)
    try:
        return str(ip_address(plain.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(plain))
    except (OSError, UnicodeEncodeError):
        return None
