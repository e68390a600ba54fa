"""TLS to Redis by redis-py's names in the URL: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` and `ssl_check_hostname`."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.ledger.port import LedgerError

_PREFIX: Final = "ssl_"
_FIELDS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_YES: Final = ("true", "yes", "1")
_NO: Final = ("false", "no", "0")


@dataclass(frozen=True, slots=True)
class Tls:
    """The server's certificate is always verified: against `ca_certs`, or the system's certificates if that is empty."""

    ca_certs: str = ""
    certfile: str = ""
    keyfile: str = ""
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """Made for each connection, so that renewed certificates are used without a restart. Raises OSError."""
        context = ssl.create_default_context(cafile=self.ca_certs or None)
        context.check_hostname = self.check_hostname
        if self.certfile:
            # Without a password, OpenSSL would ask for one on the terminal, and the start would hang.
            context.load_cert_chain(self.certfile, self.keyfile or None, password="")
        return context


def parse_tls(query: Mapping[str, str], *, is_tls: bool) -> Tls | None:
    """The `ssl_…` parameters of a ledger URL; None without TLS. Raises `LedgerError` for what cannot work, such as a missing file."""
    given = {name: value for name, value in query.items() if name.startswith(_PREFIX)}
    if not is_tls:
        if given:
            raise LedgerError(
                f"{next(iter(given))} needs a URL with TLS: rediss://, rediss+sentinel:// or rediss+cluster://"
            )
        return None
    if given.pop("ssl_cert_reqs", "required") != "required":
        raise LedgerError(
            "Redis's certificate is always verified: name your CA's certificate in ssl_ca_certs, not ssl_cert_reqs"
        )
    unknown = [name for name in given if name not in _FIELDS]
    if unknown:
        raise LedgerError(f"{unknown[0]} is not supported in a ledger URL; these are: {', '.join(_FIELDS)}")
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        raise LedgerError("ssl_keyfile needs ssl_certfile")
    checks = given.get("ssl_check_hostname", "true").lower()
    if checks not in (*_YES, *_NO):
        raise LedgerError("ssl_check_hostname is true or false")
    ca_certs, certfile, keyfile = (given.get(name, "") for name in _FIELDS[:3])
    tls = Tls(ca_certs, certfile, keyfile, checks in _YES)
    _check_files(tls)
    return tls


def _check_files(tls: Tls) -> None:
    for name, path in (("ssl_ca_certs", tls.ca_certs), ("ssl_certfile", tls.certfile), ("ssl_keyfile", tls.keyfile)):
        try:
            if path:
                open(path, "rb").close()
        except OSError as error:
            raise LedgerError(f"{name} of storage.ledger cannot be read: {path} ({error.strerror})") from error
    try:
        tls.context()
    except OSError as error:
        raise LedgerError(
            f"the TLS files of storage.ledger cannot be used ({error}): they must be PEM, and the key that of the certificate, "
            "without a password"
        ) from error
