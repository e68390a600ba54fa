"""Restricted environments: a read-only root, an unknown user id, no network. No container engine is needed, because the tests use
Linux namespaces directly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.scaled_out import settings_for
from tests.farebox_process import running_farebox, tagged

ROOT = Path(__file__).parents[2]
SOMEBODY = 54_321


def _may_unshare() -> bool:
    if not shutil.which("unshare") or not shutil.which("setpriv") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "-n", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _may_unshare(), reason="only root of a Linux that allows it may make namespaces")

# The root is read-only in this mount namespace only. Root itself checks it, because no permission would stop root.
READ_ONLY = """
mount --make-rprivate /
mount --bind "$DATA" "$DATA"
mount -o remount,ro,bind /
mount --bind "$OUTSIDE" "$OUTSIDE"  # it may be on a disk of its own
mount -o remount,ro,bind "$OUTSIDE"
if touch "$OUTSIDE/probe" 2> /dev/null; then echo "the root can be written to"; exit 9; fi
exec setpriv --reuid "$SOMEBODY" --regid "$SOMEBODY" --clear-groups --no-new-privs "$@"
"""
OFFLINE = textwrap.dedent("""
    import fcntl, json, socket, struct, sys
    from pathlib import Path
    from tests.farebox_process import running_farebox, tagged

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:  # loopback, which a new namespace has switched off
        fcntl.ioctl(one, 0x8914, struct.pack("16sh", b"lo", 1))
    try:
        socket.create_connection(("192.0.2.1", 80), 1)
        raise SystemExit("there is a network")
    except OSError:
        pass
    with running_farebox(Path(sys.argv[1]), json.loads(sys.argv[2])) as gateway:
        reply = gateway.chat("What does a tram cost?", tagged("wf", "r-1"), model="gpt-4o", max_tokens=20)
        print(reply.status, gateway.get("/api/runs/r-1").json()["cost_usd"]["settled"])
""")


@pytest.fixture
def data() -> Iterator[Path]:
    """Not pytest's own folder, which only root may read."""
    folder = Path(tempfile.mkdtemp(prefix="farebox-contained-"))
    os.chown(folder, SOMEBODY, SOMEBODY)
    yield folder
    shutil.rmtree(folder)


def test_gateway_runs_on_a_read_only_root_as_an_unknown_user(data: Path) -> None:
    config = settings_for(
        f"sqlite:///{data}/ledger.db", f"sqlite:///{data}/store.db", storage={"spool": f"{data}/spool"}
    )
    environment = {
        "DATA": str(data),
        "OUTSIDE": str(ROOT),
        "SOMEBODY": str(SOMEBODY),
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    prefix = ("unshare", "-m", "sh", "-ec", READ_ONLY, "contained")
    with running_farebox(data, config, environment=environment, prefix=prefix) as gateway:
        assert gateway.chat(headers=tagged("wf", "r-1"), model="mock", max_tokens=20).status == 200
        assert gateway.get("/api/runs/r-1").json()["requests"]["settled"] == 1
        assert gateway.get("/admin").status == 200
        assert Path(f"/proc/{gateway.pid}").stat().st_uid == SOMEBODY
        assert gateway.stop() == 0
    assert {path.stat().st_uid for path in data.rglob("*") if path.name not in ("config.yaml", "gateway.log")} == {
        SOMEBODY
    }


def test_start_without_network_prices_calls(tmp_path: Path) -> None:
    entry = {"model_name": "gpt-4o", "litellm_params": {"model": "openai/gpt-4o", "mock_response": "one two three"}}
    config = settings_for("sqlite:///ledger.db", "sqlite:///store.db", models=[entry])
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", OFFLINE, str(tmp_path), json.dumps(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    status, cost_usd = done.stdout.split()
    assert status == "200"
    assert 0 < float(cost_usd) < 0.01
