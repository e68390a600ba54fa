"""TLS to Postgres by libpq's names in the URL (`sslmode`, `sslrootcert`, `sslcert`, `sslkey`), in asyncpg's terms."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

FILES: Final = ("sslrootcert", "sslcert", "sslkey")
_VERIFYING: Final = ("verify-ca", "verify-full")
_ENCRYPTING: Final = ("require", *_VERIFYING)


def tls_arguments(query: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for asyncpg, which knows the modes but takes files only in a context. Raises ValueError and OSError."""
    mode = query.get("sslmode")
    if not any(name in query for name in FILES):
        return {} if mode is None else {"ssl": mode}
    if mode not in _ENCRYPTING:
        raise ValueError(f"sslrootcert, sslcert and sslkey need sslmode={' or '.join(_ENCRYPTING)}")
    root = query.get("sslrootcert")
    context = ssl.create_default_context(cafile=None if root == "system" else root)
    context.check_hostname = mode == "verify-full"
    if mode not in _VERIFYING and root is None:
        context.verify_mode = ssl.CERT_NONE
    if "sslcert" in query:
        context.load_cert_chain(query["sslcert"], query.get("sslkey"))
    return {"ssl": context}
