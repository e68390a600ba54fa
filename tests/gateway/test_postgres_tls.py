"""TLS to Postgres: what libpq's names in the URL become for asyncpg."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi
import pytest

from gateway.store.database import Database, StoreError
from gateway.store.postgres_tls import tls_arguments

ROOTS = certifi.where()


def test_mode_without_files_is_passed_on() -> None:
    assert tls_arguments({}) == {}
    assert tls_arguments({"sslmode": "require"}) == {"ssl": "require"}


@pytest.mark.parametrize(
    ("mode", "root", "verifies", "checks_name"),
    [
        ("verify-full", ROOTS, True, True),
        ("verify-full", "system", True, True),
        ("verify-ca", ROOTS, True, False),
        ("require", ROOTS, True, False),  # as libpq does it
    ],
)
def test_root_certificates_are_verified_against(mode: str, root: str, verifies: bool, checks_name: bool) -> None:
    context = tls_arguments({"sslmode": mode, "sslrootcert": root})["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode is ssl.CERT_REQUIRED, context.check_hostname) == (verifies, checks_name)


@pytest.mark.parametrize("query", ["sslrootcert=/nowhere.crt&sslmode=verify-full", f"sslrootcert={ROOTS}"])
async def test_unusable_settings_are_an_error_that_says_so(query: str, tmp_path: Path) -> None:
    database = Database(f"postgresql://u@127.0.0.1:1/d?{query}")
    with pytest.raises(StoreError, match=r"TLS settings of storage\.store cannot be used"):
        await database.open()
