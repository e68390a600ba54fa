"""Runs the application on uvicorn, in one process or several."""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final

import structlog
import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from gateway.app import Application
from gateway.config.schema import Config
from gateway.ledger.port import LedgerError
from gateway.observability.logs import secrets_of, set_up_logging
from gateway.observability.telemetry import METRICS_FOLDER_VARIABLE
from gateway.server.connections import ConnectionLimits, Connections, connections_possible
from gateway.server.guard import Guard
from gateway.store.database import StoreError

_log = structlog.get_logger(__name__)
_BACKLOG: Final = 2048
_WATCH_S: Final = 0.2
# The SQLite ledger has a thread of its own. With the default of 5 ms, a busy event loop keeps it waiting that long at every
# switch: 5.7 ms instead of 0.5 ms a call, measured with bench/ledger.py.
_SWITCH_INTERVAL_S: Final = 0.0005
# Enough for 32 MB over a poor connection; a slower client holds memory that others need.
_BODY_S: Final = 60.0
# Calls make thousands of small objects that die with them; collecting cycles after every 700 took a twentieth of the CPU.
_YOUNG_OBJECTS_MAX: Final = 20_000
# One Ctrl-C, or a `kill` of the process group, reaches a worker twice: directly, and forwarded by its parent.
_SAME_SIGNAL_S: Final = 1.0
_HEAPS_MAX: Final = -8  # M_ARENA_MAX of malloc.h
_STARTUP_FAILED: Final = 3  # uvicorn's exit code when the application could not start


class _Server(uvicorn.Server):
    """Prints where it listens, which is unknown beforehand for port 0. Signals within `same_signal_s` of the first count as
    the same one."""

    def __init__(self, config: uvicorn.Config, same_signal_s: float) -> None:
        super().__init__(config)
        self._same_signal_s = same_signal_s
        self._first_signal_s = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What was made at start lives as long as the process, so the collector need not check it again.
            gc.collect()
            gc.freeze()
            gc.enable()
            gc.set_threshold(_YOUNG_OBJECTS_MAX, 10, 10)
            _trim_heap()
            for listener in sockets or []:
                host, port = listener.getsockname()[:2]
                print(f"Farebox listens on http://{host}:{port}", file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops gracefully, with exit code 0; a second one does not wait."""
        now_s = time.monotonic()
        if not self.should_exit:
            self.should_exit, self._first_signal_s = True, now_s
        elif now_s - self._first_signal_s >= self._same_signal_s:
            self.force_exit = True


def _use_one_heap() -> None:
    """glibc gives each thread its own heap, and would keep what the thread that builds the tokenizer's table has freed."""
    _ask_glibc("mallopt", _HEAPS_MAX, 1)


def _trim_heap() -> None:
    """glibc keeps what the start freed (the price map, the tokenizer's table as text); an idle gateway does not need it."""
    _ask_glibc("malloc_trim", 0)


def _ask_glibc(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)  # missing in musl
        if function is not None:
            function(*arguments)


def serve(config: Config, *, allow_anonymous: bool) -> int:
    """Run until a signal ends it. Returns the exit code: 0 after a clean stop, 1 if it could not start."""
    try:
        listening = _listen(config.server.host, config.server.port)
    except OSError as error:
        hint = " --port takes another." if error.errno == errno.EADDRINUSE else ""
        address = f"{config.server.host}:{config.server.port}"
        print(f"farebox: cannot listen on {address}: {error.strerror}.{hint}", file=sys.stderr)
        return 1
    # With port 0 only the socket knows the actual port.
    server = config.server.model_copy(update={"port": listening.getsockname()[1]})
    config = config.model_copy(update={"server": server})
    if config.server.workers == 1:
        try:
            return min(1, _serve_here(config, allow_anonymous, listening))
        except SystemExit as exit_request:  # uvicorn's way to report that the application could not start
            return 1 if exit_request.code else 0
    return _serve_in_workers(config, allow_anonymous, listening)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(_BACKLOG)
    listening.set_inheritable(True)
    return listening


def _serve_here(config: Config, allow_anonymous: bool, listening: socket.socket, same_signal_s: float = 0.0) -> int:
    set_up_logging(config.server.log_format, config.server.log_level, secrets_of(config, os.environ))
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _use_one_heap()
    try:
        application = Application(config, allow_anonymous=allow_anonymous)
    except (LedgerError, StoreError) as error:
        # Their URLs are read here; connecting to them is part of uvicorn's startup.
        print(f"farebox: {error}", file=sys.stderr)
        return _STARTUP_FAILED
    connections = Connections(_connection_limits(config), application.parts.telemetry, application.parts.ids.new)
    server = _Server(
        uvicorn.Config(
            Guard(application, application.parts.ids.new),
            interface="asgi3",
            http=connections.protocol,  # type: ignore[arg-type]  # typed as a class, but only called
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(config.server.keep_alive_seconds),
            timeout_graceful_shutdown=max(1, int(config.server.drain_seconds)),
        ),
        same_signal_s,
    )
    _on_hangup(server.handle_exit)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_stop_with_parent, args=(parent,), daemon=True).start()
    server.run(sockets=[listening])
    return 0 if server.started else _STARTUP_FAILED


def _on_hangup(stop: Callable[[int, FrameType | None], None]) -> None:
    """Also stop gracefully when the terminal is closed, unless the gateway was started to outlive it (`nohup`)."""
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, stop)


def _stop_with_parent(parent: BaseProcess) -> None:
    """Otherwise a worker whose parent was killed would keep the port, with nothing left to replace or stop it."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _connection_limits(config: Config) -> ConnectionLimits:
    server = config.server
    possible = connections_possible(server.connections_max)
    if possible < server.connections_max:
        _log.warning("connections_limited", connections_max=possible, reason="the process may not open more files")
    return ConnectionLimits(
        connections_max=possible,
        head_s=server.header_seconds,
        body_s=_BODY_S,
        stall_s=server.stall_seconds,
        bodies_bytes_max=server.bodies_bytes_max,
    )


def _serve_in_workers(config: Config, allow_anonymous: bool, listening: socket.socket) -> int:
    """Identical processes on one listening socket. A dead one is replaced; a signal ends all of them."""
    set_up_logging(config.server.log_format, config.server.log_level, secrets_of(config, os.environ))
    with tempfile.TemporaryDirectory(prefix="farebox-metrics-") as folder:
        # Any worker that is asked for the metrics reads all of them; see gateway/observability/telemetry.py.
        os.environ.setdefault(METRICS_FOLDER_VARIABLE, folder)
        return _Workers(config, allow_anonymous, listening).run()


class _Workers:
    def __init__(self, config: Config, allow_anonymous: bool, listening: socket.socket) -> None:
        self._listening = listening
        self._arguments = (config, allow_anonymous, listening, _SAME_SIGNAL_S)
        self._context = get_context("spawn")
        self._workers = [self._new() for _ in range(config.server.workers)]
        self._is_stopping = False

    def run(self) -> int:
        """Run until a signal. Returns 1 if a worker cannot start, because the others could not either, or soon could not."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        _on_hangup(self._stop)
        for worker in self._workers:
            if self._is_stopping:
                break
            self._start(worker)
        exit_code = 0
        while not self._is_stopping:
            wait([worker.sentinel for worker in self._workers], _WATCH_S)
            for position, worker in enumerate(self._workers):
                if worker.is_alive() or self._is_stopping:
                    continue
                if worker.exitcode == _STARTUP_FAILED:
                    exit_code = 1
                    self._stop()
                    break
                self._replace(position, worker)
        # Left open, it would accept connections that nobody answers while the workers finish their calls.
        self._listening.close()
        for worker in self._workers:
            if worker.pid is not None:
                worker.join()
        return exit_code

    def _start(self, worker: SpawnProcess) -> None:
        """A signal before the worker is started only reaches the others, so it is passed on here."""
        worker.start()
        if self._is_stopping:
            worker.terminate()

    def _replace(self, position: int, dead: SpawnProcess) -> None:
        _log.error("worker_died", exit_code=dead.exitcode)
        mark_process_dead(dead.pid)  # type: ignore[no-untyped-call]
        self._workers[position] = self._new()
        self._start(self._workers[position])

    def _new(self) -> SpawnProcess:
        return self._context.Process(target=_serve_here, args=self._arguments)

    def _stop(self, *_: object) -> None:
        self._is_stopping = True
        for worker in self._workers:
            if worker.is_alive() and worker.pid:
                worker.terminate()
