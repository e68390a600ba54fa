"""The addresses that the gateway itself may connect to, apart from its models': none that only hosts inside its network should reach.

Addresses are checked when a URL is read, and again for the actual address of each connection, so DNS rebinding gains nothing.
`ipaddress.is_global` does not help here: it accepts translated addresses of a cloud's metadata service (64:ff9b::a9fe:a9fe,
192.0.0.192).
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
    return tuple(ip_network(network) for network in text.split())


# Never valid for a webhook: link-local (where clouds keep credentials), metadata services at other addresses (Alibaba,
# Oracle, Azure, AWS over IPv6), "this" network, multicast, reserved.
_NEVER: Final = _networks(
    "169.254.0.0/16 fe80::/10 100.100.100.200/32 192.0.0.192/32 168.63.129.16/32 fd00:ec2::254/128 fd20:ce::254/128"
    " 0.0.0.0/8 224.0.0.0/4 240.0.0.0/4 ff00::/8 ::/128 100::/64 2001:db8::/32 192.0.2.0/24 198.51.100.0/24 203.0.113.0/24"
)
# This machine and private networks: often intended, but only explicitly.
_PRIVATE: Final = _networks(
    "127.0.0.0/8 ::1/128 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 192.0.0.0/24 198.18.0.0/15 fc00::/7 fec0::/10"
)
# IPv6 networks that contain IPv4 addresses, and the position of the address (in bits from the right).
_IPV4_IN_IPV6: Final = (
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("64:ff9b:1::/48"), 0),
    (IPv6Network("2002::/16"), 80),
)
_TEREDO: Final = IPv6Network("2001::/32")


def fault_of_address(text: str, *, private_allowed: bool) -> str | None:
    """Why nothing may be sent to this IP address; None if it is allowed."""
    address = _embedded_ipv4(ip_address(text.partition("%")[0]))
    if address in _TEREDO or any(address in network for network in _NEVER):
        return f"{text} is an address that no webhook has (link-local, a cloud's metadata service, or reserved)"
    if not private_allowed and any(address in network for network in _PRIVATE):
        return f"{text} is an address of this machine or of a private network"
    return None


def fault_of_url(url: str, *, private_allowed: bool) -> str | None:
    """Why this URL is not allowed, as far as that is known without resolving its host; None if it is."""
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


def _embedded_ipv4(address: Address) -> Address:
    """The IPv4 address inside an IPv6 address, if there is one."""
    if isinstance(address, IPv6Address) and int(address) > 1:
        for network, shift in _IPV4_IN_IPV6:
            if address in network:
                return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return address


def _address_in(host: str) -> str | None:
    """The address in a host's text, in any spelling that resolvers accept: 127.1, 0x7f.1, 2130706433, ①②⑦.⓪.⓪.①."""
    normalized = unicodedata.normalize("NFKC", host)
    try:
        return str(ip_address(normalized.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(normalized))
    except (OSError, UnicodeEncodeError):
        return None
