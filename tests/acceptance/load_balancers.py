"""Load balancers in front of gateways: nginx and Caddy as they are shipped in `deploy/`, and a stand-in for both.

`TEST_NGINX_BINARY` and `TEST_CADDY_BINARY` name programs that are not in the path. Caddy must be 2.11.6 or later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path

import pytest

from tests.acceptance.scaled_out import LoopThread
from tests.ports import free_port

_DEPLOY = Path(__file__).parents[2] / "deploy"
_GATEWAYS = ("gateway-1", "gateway-2")


class StandIn:
    """Gives each connection to the next gateway that accepts it."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = cycle(ports)
        self._count = len(ports)
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(self._count):
            with contextlib.suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", next(self._ports))
                await asyncio.gather(_pump(reader, up_writer), _pump(up_reader, writer))
                return
        writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()


@contextlib.contextmanager
def stand_in(folder: Path, ports: list[int]) -> Iterator[int]:
    loop = LoopThread()
    balancer = StandIn(ports)
    loop.run(balancer.start())
    try:
        yield balancer.port
    finally:
        loop.run(balancer.stop())
        loop.close()


@contextlib.contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[int]:
    """The shipped configuration without TLS, because the certificates are the operator's."""
    program = _program("nginx")
    port = free_port()
    shipped = _shipped("nginx.conf", ports)
    shipped = re.sub(r"^ *(http2|ssl_\w+) .*;\n", "", shipped, flags=re.MULTILINE)
    shipped = shipped.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"daemon off;\npid {folder}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{shipped}\n}}\n"
    (folder / "nginx.conf").write_text(("user root;\n" if os.geteuid() == 0 else "") + whole)
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "nginx.log")]
    with _running(command, {}):
        yield port


@contextlib.contextmanager
def caddy(folder: Path, ports: list[int]) -> Iterator[int]:
    """The shipped configuration without TLS, because root's Caddy would make the machine trust its certificates."""
    program = _program("caddy")
    port = free_port()
    (folder / "Caddyfile").write_text(_shipped("Caddyfile", ports).replace("admin 127.0.0.1:2019", "admin off"))
    command = [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    variables = {name: str(folder / "caddy") for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with _running(command, {**variables, "FAREBOX_DOMAIN": f"http://127.0.0.1:{port}"}, folder / "caddy.log"):
        yield port


def _program(name: str) -> str:
    variable = f"TEST_{name.upper()}_BINARY"
    program = os.environ.get(variable) or shutil.which(name)
    if program is None:
        pytest.skip(f"no {name}: install it or set {variable}")
    return program


def _shipped(name: str, ports: list[int]) -> str:
    text = (_DEPLOY / name).read_text()
    for gateway, port in zip(_GATEWAYS, ports, strict=True):
        text = text.replace(f"{gateway}:4000", f"127.0.0.1:{port}")
    return text


@contextlib.contextmanager
def _running(command: list[str], variables: Mapping[str, str], log: Path = Path(os.devnull)) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(command, env={**os.environ, **variables}, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)
