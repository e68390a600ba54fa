"""Many concurrent streams: the gateway's memory, whether all of them end properly, and when their first bytes arrive.

    .venv/bin/python -m bench.many_streams                  2,000 streams of 40 chunks, four a second each: about 30 s
    .venv/bin/python -m bench.many_streams --streams 500

Every stream is a tagged call with a budget for its run. The gateway has a core for itself if there are two. The exit code is 1 if
a stream was not answered completely, or the gateway took 400 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final

from bench import measure
from bench.__main__ import allow_many_files
from bench.load import LoadSpec
from bench.paths import PATHS
from bench.rounds import generator
from bench.servers import Server, servers, start_farebox, start_mock

_PATH: Final = PATHS["stream-slow"]
_SAMPLE_S: Final = 0.2
_MEMORY_MB_MAX: Final = 400


class MemoryWatch:
    """Samples the resident memory of a server until it is stopped, and keeps the highest."""

    def __init__(self, server: Server) -> None:
        self.idle_mb = self.peak_mb = measure.memory_bytes(server.processes) / 2**20
        self._server = server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_SAMPLE_S):
            self.peak_mb = max(self.peak_mb, measure.memory_bytes(self._server.processes) / 2**20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=2_000)
    streams: int = parser.parse_args().streams
    allow_many_files()
    cores = measure.Cores.chosen()
    with (
        tempfile.TemporaryDirectory(prefix="farebox-streams-") as folder,
        contextlib.ExitStack() as stack,
        servers(Path(folder), cores) as running,
    ):
        mock = start_mock(running)
        gateway = start_farebox(running, f"{mock.url}/v1", name="farebox")
        load = stack.enter_context(generator(cores.rest))
        load.run(_load_spec(gateway, 2))
        with MemoryWatch(gateway) as memory:
            result = load.run(_load_spec(gateway, streams))
    print(f"{result.calls} of {streams} streams answered whole, {result.failed} failed; {'; '.join(result.errors)}")
    print(f"resident memory: {memory.idle_mb:.0f} MB before, {memory.peak_mb:.0f} MB at most")
    print(
        f"first byte after {result.first_byte_p50_ms:.0f} ms (p50); a stream takes {result.p50_ms / 1000:.1f} s (p50)"
    )
    print(f"{result.cpu_us / _PATH.chunks:.0f} µs of CPU a chunk, everything included")
    return 0 if result.calls == streams and not result.failed and memory.peak_mb < _MEMORY_MB_MAX else 1


def _load_spec(gateway: Server, streams: int) -> LoadSpec:
    return LoadSpec(
        host="127.0.0.1",
        port=gateway.port,
        path=_PATH.name,
        model=f"bench-{_PATH.name}",
        connections=streams,
        seconds=0.0,
        warm_up_seconds=0.0,
        headers={},
        is_tagged=True,
        prompts="fresh",
        nonce=secrets.token_hex(4),
        processes=gateway.processes,
        calls_each=1,
    )


if __name__ == "__main__":
    sys.exit(main())
