"""What is installed, what is shipped, and what an import does: nothing that is not in this tree or in a lock."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
# Python runs what stands in such a file at every start, whoever put it there (litellm_init.pth of March 2026 did so).
PTH_ALLOWED = {"_editable_impl_farebox.pth", "distutils-precedence.pth"}
# What an import costs in CPU seconds: 1.2 measured on a busy machine. LiteLLM's proxy takes more than 4.
IMPORT_CPU_S_MAX = 2.5


def pins(lock: str) -> dict[str, tuple[str, int]]:
    """name → (version, number of hashes)"""
    hashes_by_name: dict[str, tuple[str, int]] = {}
    name = ""
    for line in (ROOT / "requirements" / lock).read_text().splitlines():
        matched = re.match(r"([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)", line)
        if matched:
            name = matched[1]
            hashes_by_name[name] = (matched[2], 0)
        elif "--hash=sha256:" in line:
            hashes_by_name[name] = (hashes_by_name[name][0], hashes_by_name[name][1] + 1)
    return hashes_by_name


def test_no_unknown_pth_file_runs_code_at_python_start() -> None:
    pth_files = {path.name for path in SITE_PACKAGES.glob("*.pth")}
    assert pth_files <= PTH_ALLOWED, f"{pth_files - PTH_ALLOWED}: who put it there, and what does it do?"
    assert not [name for name in ("sitecustomize", "usercustomize") if (SITE_PACKAGES / f"{name}.py").exists()]
    editable = SITE_PACKAGES / "_editable_impl_farebox.pth"
    if editable.exists():
        assert [line for line in editable.read_text().splitlines() if line.startswith("import")] == []


@pytest.mark.parametrize("lock", sorted(path.name for path in (ROOT / "requirements").glob("*.txt")))
def test_every_pin_of_a_lock_has_hashes(lock: str) -> None:
    pinned = pins(lock)
    assert pinned
    assert {name for name, (_, hashes) in pinned.items() if not hashes} == set()


def test_locks_agree_and_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime, dev = pins("runtime.txt"), pins("dev.txt")
    named = {re.match(r"[a-z0-9-]+", dependency)[0] for dependency in project["dependencies"]}  # type: ignore[index]
    assert named <= runtime.keys()
    assert {name for name in runtime.keys() & dev.keys() if runtime[name][0] != dev[name][0]} == set()
    assert "litellm" in runtime
    assert f"litellm=={runtime['litellm'][0]}" in project["dependencies"], (
        "pinned exactly: its releases were poisoned before"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(ROOT, tmp_path_factory.mktemp("wheel")))


def build_wheel(source: Path, into: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(into.glob("*.whl"))


def tree_files() -> dict[str, Path]:
    """Name in the wheel → file, of everything that git knows and the wheel is to have."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "gateway", "policies", "migrations"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.split() if (ROOT / name).is_file()]
    files = {f"gateway/{name}" if name.startswith("migrations/") else name: ROOT / name for name in names}
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in included["force-include"].items():
        if (ROOT / source).is_file():
            files[target] = ROOT / source
    return files


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the tree is known by git")
def test_wheel_equals_the_git_tree(wheel: zipfile.ZipFile) -> None:
    """The wheel has nothing that git does not know."""
    expected = tree_files()
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped - expected.keys() == set()
    assert expected.keys() - shipped == set()
    assert [name for name in shipped if wheel.read(name) != expected[name].read_bytes()] == []
    beside = {name.partition(".dist-info/")[2] for name in wheel.namelist() if ".dist-info/" in name}
    assert beside == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_wheel_contains_offline_resources(wheel: zipfile.ZipFile) -> None:
    """Tables of the tokenizer and the pages' own files: nothing of them is fetched."""
    names = "\n".join(wheel.namelist())
    for part in (
        "gateway/tokenizer_tables/",
        "gateway/admin/static/",
        "gateway/migrations/versions/",
        "gateway/ledger/lua/",
    ):
        assert part in names


def in_a_new_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_opens_no_connection_and_resolves_no_name() -> None:
    in_a_new_python(
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('an import wants to talk to somebody')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = refuse\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "import gateway.app, gateway.cli, policies, sys\n"
        "assert 'litellm' not in sys.modules, 'it costs seconds, and looks for its own settings'\n"
    )


def test_import_takes_less_than_2_5_cpu_seconds() -> None:
    """CPU time, the better of two: other work on the machine does not count, a cold file cache counts once."""
    code = "import time; started = time.process_time(); import gateway.app; print(time.process_time() - started)"
    assert min(float(in_a_new_python(code)) for _ in range(2)) < IMPORT_CPU_S_MAX
