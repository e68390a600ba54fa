"""The cost of an idle gateway: resident memory, and CPU until it is ready, for a first start and for one with existing files.

    .venv/bin/python -m bench.idle                 four starts with the installed tokenizer
    .venv/bin/python -m bench.idle --tiktoken      with tiktoken, even if toktok-rs is installed

It uses config.example.yaml, in a folder of its own. CPU and memory are those of the process, including shared libraries. The exit
code is 1 if a start took 125 MB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from bench import measure
from bench.servers import ROOT, Servers, servers

_ROUNDS: Final = 2
# By then, the work that a start defers (first heartbeats, first reads of the tables) is done.
_SETTLING_S: Final = 1.5
_MEMORY_MB_MAX: Final = 125


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiktoken", action="store_true")
    environment: dict[str, str] = {}
    highest_mb = 0.0
    with tempfile.TemporaryDirectory(prefix="farebox-idle-") as name:
        folder = Path(name)
        if parser.parse_args().tiktoken:
            (folder / "toktok.py").write_text("raise ImportError\n")
            environment["PYTHONPATH"] = str(folder)
        for number in range(_ROUNDS):
            home = folder / str(number)
            home.mkdir()
            for start in ("first", "second"):
                with servers(home, None) as running:
                    highest_mb = max(highest_mb, _measured(running, start, environment))
    return 0 if highest_mb < _MEMORY_MB_MAX else 1


def _measured(running: Servers, start: str, environment: Mapping[str, str]) -> float:
    """Prints a line; returns the resident memory in MB."""
    path = running.folder / "config.yaml"
    path.write_text(yaml.safe_dump(_config(running.folder)))
    command = [str(Path(sys.executable).parent / "farebox"), "--config", str(path), "serve", "--port"]
    gateway = running.start(start, lambda port: [*command, str(port)], ready_path="/readyz", environment=environment)
    cpu_s = measure.cpu_ns_of(gateway.processes) / 1e9
    time.sleep(_SETTLING_S)
    memory_mb = measure.memory_bytes(gateway.processes) / 2**20
    print(f"{start} start: {cpu_s:.2f} s of CPU until ready, {memory_mb:.1f} MB resident", flush=True)
    return memory_mb


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.example.yaml").read_text(encoding="utf-8"))
    config["storage"].update(
        ledger=f"sqlite:///{folder / 'ledger.db'}",
        store=f"sqlite:///{folder / 'store.db'}",
        spool=str(folder / "spool"),
    )
    return config


if __name__ == "__main__":
    sys.exit(main())
