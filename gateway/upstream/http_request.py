"""A POST as the direct lane sends it: its address and its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import urlsplit

# Up to this size, copying the body behind the head is cheaper than a second write.
_JOINED_BYTES_MAX: Final = 64 * 1024
# Headers that only this module sets.
_OWN_HEADERS: Final = frozenset({"content-length", "host", "connection", "transfer-encoding"})


class Address(NamedTuple):
    """Where a POST goes. Connections are pooled by `origin`."""

    host: str
    port: int
    is_tls: bool
    target: str

    @property
    def origin(self) -> tuple[str, int, bool]:
        return self[:3]

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises ValueError if `url` is not an http(s) address."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError("not an http(s) address")
        is_tls = parts.scheme == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not target.isascii() or not target.isprintable() or " " in target:
            raise ValueError("not an http(s) address")
        return cls(parts.hostname, parts.port or (443 if is_tls else 80), is_tls, target)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


def request_of(address: Address, headers: Mapping[str, str], body: bytes) -> list[bytes]:
    """The request in pieces, to be written in order. Raises ValueError for a header that HTTP cannot carry."""
    encoded = _head(address, tuple(headers.items())) + b"%d\r\n\r\n" % len(body)
    return [encoded + body] if len(body) <= _JOINED_BYTES_MAX else [encoded, body]


@lru_cache(maxsize=1024)  # calls to the same model differ in little more than their body
def _head(address: Address, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The head, up to and including `content-length: `."""
    lines = [f"POST {address.target} HTTP/1.1\r\nhost: {address.authority}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers if name not in _OWN_HEADERS]
    head = "".join(lines)
    # No header value may contain a line break. The first item of `lines` holds two lines.
    if head.count("\n") != len(lines) + 1 or head.count("\r") != len(lines) + 1 or "\0" in head:
        raise ValueError("a header holds a line break")
    return head.encode("latin-1") + b"content-length: "
