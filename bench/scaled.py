"""Calls per second with one, two and four gateway processes on Redis and Postgres.

    .venv/bin/python -m bench.scaled [--workers 1 2 4] [--one-core] [--connections 64] [--rounds 3] [--seconds 3]

Gateways, Redis, Postgres, mock upstream and load generator all run on the same cores. So the figure that applies to other machines
is the CPU time per call; calls/s only say what this machine does with all of them. The gateways take turns.

With `--one-core`, all processes of a gateway share one core, and everything else the other: if a call costs the same CPU with N
processes as with one, N processes on N free cores serve N times as many calls. The fraction of that ideal is printed. Each
process then has as many connections as the single one.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import yaml

from bench import measure
from bench.load import LoadResult, LoadSpec
from bench.rounds import Generator
from bench.servers import ROOT, Server, Servers, farebox_config, servers, start_mock
from tests.postgres_server import private_server
from tests.redis_server import RedisServer, running_server

PATH: Final = "1k"


def start(running: Servers, upstream: str, redis: RedisServer, store: str, workers: int) -> Server:
    name = f"farebox-{workers}"
    folder = running.folder / name
    folder.mkdir()
    config = farebox_config(folder, upstream, lane="direct", orchestrated=False, ledger=redis.url)
    config["storage"]["store"] = store
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).parent / "farebox"), "--config", str(path), "serve", "--workers", str(workers)]
    return running.start(name, lambda port: [*command, "--port", str(port)], ready_path="/readyz")


def load_spec(server: Server, processes: int, arguments: argparse.Namespace) -> LoadSpec:
    return LoadSpec(
        host="127.0.0.1",
        port=server.port,
        path=PATH,
        model=f"bench-{PATH}",
        connections=arguments.connections * (processes if arguments.one_core else 1),
        seconds=arguments.seconds,
        warm_up_seconds=1.0,
        headers={},
        is_tagged=True,
        prompts="fresh",
        nonce=secrets.token_hex(4),
        processes=measure.tree(server.process.pid),
    )


def line(workers: int, results: list[LoadResult], redis_us: list[float]) -> str:
    rate = statistics.median(result.calls / result.seconds for result in results)
    cpu_us = statistics.median(result.cpu_us for result in results)
    p50, p99 = (statistics.median(getattr(result, name) for result in results) for name in ("p50_ms", "p99_ms"))
    failed = sum(result.failed for result in results)
    faults = f", {failed} failed: {results[-1].errors}" if failed else ""
    return (
        f"{workers} process(es): {rate:7,.0f} calls/s, {cpu_us:5.0f} µs of the gateways' CPU a call, "
        f"{statistics.median(redis_us):4.0f} µs of Redis's, p50 {p50:.1f} ms, p99 {p99:.1f} ms{faults}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--one-core", action="store_true", help="all processes of a gateway share one core")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "bench.load"]
    cores = measure.Cores.chosen() if arguments.one_core else None
    with (
        measure.pinned(cores.rest) if cores is not None else contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder,
        private_server(durable=True) as store,
        running_server("--appendfsync", "everysec") as redis,
        servers(Path(folder), cores) as running,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process,
    ):
        subprocess.run(
            [str(Path(sys.executable).parent / "farebox"), "migrate"],
            env={"FAREBOX_STORAGE_STORE": store, "FAREBOX_STORAGE_LEDGER": redis.url},
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        upstream = start_mock(running).url
        gateways = {number: start(running, upstream, redis, store, number) for number in arguments.workers}
        generator = Generator(process)
        results: dict[int, list[LoadResult]] = {number: [] for number in gateways}
        redis_us: dict[int, list[float]] = {number: [] for number in gateways}
        for _ in range(arguments.rounds):
            for number, server in gateways.items():
                before = measure.cpu_ns(redis.pid)
                results[number].append(generator.run(load_spec(server, number, arguments)))
                calls = max(1, results[number][-1].calls)
                redis_us[number].append((measure.cpu_ns(redis.pid) - before) / 1000 / calls)
        process.kill()
    for number in gateways:
        print(line(number, results[number], redis_us[number]))
    least = min(gateways)
    for number in gateways:
        if arguments.one_core and number != least:
            pairs = zip(results[least], results[number], strict=True)
            share = statistics.median(single.cpu_us / several.cpu_us for single, several in pairs)
            print(
                f"{number} processes on {number} free cores: {share:.2f} x {number} of what one serves, by the CPU of a call"
            )


if __name__ == "__main__":
    main()
