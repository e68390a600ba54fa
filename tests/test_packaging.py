"""The wheel and the sdist: what is in them, that it runs, and that it uninstalls cleanly.

    FAREBOX_TEST_RELEASE=1 .venv/bin/python -m pytest tests/test_packaging.py

also installs the wheel with the locked, hashed dependencies into an empty venv, runs it there and removes it again.
"""

from __future__ import annotations

import email
import os
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest

import gateway
from tests.ports import free_port

pytestmark = [pytest.mark.xdist_group("packaging"), pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
READY_SECONDS = 60.0


def build(source: Path, target: Path, *kinds: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target), *kinds],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "-t", "wheel", "-t", "sdist")
    return folder


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("farebox-*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as files:
        return set(files.namelist())


def test_wheel_has_both_packages_and_no_tests_or_caches(dist: Path) -> None:
    names = names_in(only_wheel(dist))
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"gateway", "policies", f"farebox-{PROJECT['version']}.dist-info"}
    tracked = subprocess.run(
        ["git", "ls-files", "gateway", "policies"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {name for name in tracked if name not in names} == set()
    for needed in (
        "gateway/config.example.yaml",
        "gateway/migrations/env.py",
        "gateway/migrations/embedded.sql",
        "gateway/migrations/versions/v0001_tables.py",
    ):
        assert needed in names
    assert not [name for name in names if "__pycache__" in name or "test" in Path(name).name]
    license_files = [name for name in names if name.endswith("licenses/LICENSE")]
    assert len(license_files) == 1


def test_wheel_metadata_agree_with_pyproject(dist: Path) -> None:
    wheel = only_wheel(dist)
    info = f"farebox-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(wheel) as files:
        metadata = email.message_from_bytes(files.read(f"{info}/METADATA"))
        scripts = files.read(f"{info}/entry_points.txt").decode()
    assert metadata["Version"] == PROJECT["version"] == gateway.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = [requirement for requirement in metadata.get_all("Requires-Dist") or [] if "extra ==" not in requirement]
    assert len(needed) == len(PROJECT["dependencies"])
    assert metadata.get_all("Provides-Extra") == list(PROJECT["optional-dependencies"])
    assert "farebox = gateway.cli:main" in scripts
    assert "# Farebox" in metadata.get_payload()


def test_sdist_builds_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    (packed,) = dist.glob("farebox-*.tar.gz")
    with tarfile.open(packed) as files:
        names = files.getnames()
    # Python 3.11.2, which Debian 12 has, knows no filter for `extractall`; later ones want one.
    subprocess.run(["tar", "-xzf", packed, "-C", tmp_path], check=True)
    (source,) = tmp_path.iterdir()
    build(source, tmp_path / "again", "-t", "wheel")
    assert names_in(only_wheel(tmp_path / "again")) == names_in(only_wheel(dist))
    for needed in (
        "Makefile",
        "requirements/runtime.txt",
        "tests/conftest.py",
        "examples/offline.yaml",
        "docs/index.md",
    ):
        assert f"{source.name}/{needed}" in names, needed
    assert packed.stat().st_size < 20_000_000


class Installed:
    """A `farebox` that is started by a command, in a folder of its own."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._command, self._folder = command, folder
        self._environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment}

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def serves_a_call(self) -> str:
        """Start, call, stop. Returns the answer."""
        port = free_port()
        with subprocess.Popen(
            [*self._command, "serve", "--port", str(port)],
            cwd=self._folder,
            env=self._environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            try:
                self._wait(f"http://127.0.0.1:{port}/readyz", process)
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    b'{"model": "mock", "messages": [{"role": "user", "content": "hi"}]}',
                    {"content-type": "application/json", "x-workflow-id": "packed", "x-workflow-run-id": "p-1"},
                )
                with urllib.request.urlopen(request, timeout=20) as answer:
                    assert answer.headers["x-budget-run-limit"] == "20000"
                    return str(answer.read().decode())
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=40)

    def _wait(self, url: str, process: subprocess.Popen[str]) -> None:
        deadline_s = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline_s:
            assert process.poll() is None
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail("the installed gateway did not become ready")


def check(farebox: Installed, folder: Path) -> None:
    """The first commands of somebody who installed the package."""
    assert farebox("--version") == f"farebox {PROJECT['version']}\n"
    farebox("init")
    assert (folder / "config.yaml").read_text().startswith("# Editors check this file")
    assert "The configuration is fine." in farebox("check")
    assert '"$schema"' in farebox("schema")
    assert "Redis" in farebox("explain", "ledger_out_of_reach")
    assert "The fare was taken before the ride" in farebox.serves_a_call()
    assert "p-1" in farebox("runs", "list")
    assert "is 000" in farebox("migrate")


def test_unpacked_wheel_runs_without_the_source_tree(dist: Path, tmp_path: Path) -> None:
    """Unpacked as pip would, before the dependencies of this venv."""
    site, folder = tmp_path / "site", tmp_path / "work"
    folder.mkdir()
    with zipfile.ZipFile(only_wheel(dist)) as files:
        files.extractall(site)
    where = subprocess.run(
        [sys.executable, "-c", "import gateway; print(gateway.__file__)"],
        cwd=folder,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(site)), where.stdout + where.stderr
    check(Installed([sys.executable, "-m", "gateway"], folder, {"PYTHONPATH": str(site)}), folder)


@pytest.fixture
def empty_venv(tmp_path: Path) -> Path:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=100)
    return venv


@pytest.mark.skipif(not os.environ.get("FAREBOX_TEST_RELEASE"), reason="an empty venv is filled before a release")
@pytest.mark.timeout(900)
def test_wheel_installs_with_hashes_runs_and_uninstalls_cleanly(dist: Path, tmp_path: Path, empty_venv: Path) -> None:
    def pip(*arguments: str) -> None:
        command = [
            str(empty_venv / "bin" / "python"),
            "-m",
            "pip",
            *arguments,
            "--quiet",
            "--disable-pip-version-check",
        ]
        subprocess.run(command, check=True, timeout=600, cwd=tmp_path)

    folder = tmp_path / "work"
    folder.mkdir()
    pip("install", "--require-hashes", "--only-binary", ":all:", "-r", str(ROOT / "requirements" / "runtime.txt"))
    (site,) = empty_venv.glob("lib/python*/site-packages")
    before = {path for path in site.iterdir() if path.name != "__pycache__"}
    pip("install", "--no-deps", str(only_wheel(dist)))
    farebox = Installed([str(empty_venv / "bin" / "farebox")], folder, {})
    check(farebox, folder)
    assert "refused" in farebox("demo")
    pip("check")
    pip("uninstall", "--yes", "farebox")
    assert {path for path in site.iterdir() if path.name != "__pycache__"} == before
    assert not (empty_venv / "bin" / "farebox").exists()
