"""`python -m tests.fake_provider --port N`: the fake provider as a process of its own; prints its URL when it serves."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys

from tests.fake_provider.server import FakeProvider


async def serve(port: int, host: str) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with FakeProvider(port=port, host=host) as provider:
        sys.stdout.write(f"{provider.url}\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--host", default="127.0.0.1")
    parsed = arguments.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parsed.port, parsed.host))
