"""Every snippet of README and documentation does what it says: commands and Python run against a real gateway that was started from
the example configuration, YAML is loaded as a configuration, JSON is parsed. What is only for reading says why."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config.loading import parse_config
from tests.docs.fences import Block, blocks
from tests.farebox_process import FareboxProcess, running_farebox

# A page may type a dozen commands, each of which starts Python anew.
pytestmark = [pytest.mark.xdist_group("docs-snippets"), pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:4000"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose snippets have a test of their own.
ELSEWHERE = {
    "clients.md": "tests/clients/test_snippets.py",
    "python-api.md": "tests/policies/test_python_api.py",
    "README.md": "tests/acceptance/test_readme.py",
}
SHELL, PYTHON = {"sh", "bash"}, {"python"}
# `make` installs, builds and starts; what it does is what the rest of the tests do.
STARTS = re.compile(r"^(?:make \w[\w-]*|\.venv/bin/python -m pytest)\b[^\n]*$", re.MULTILINE)


@dataclass
class Reader:
    """Somebody who reads a page from top to bottom, in a folder of their own, and types what it shows."""

    gateway: FareboxProcess
    folder: Path

    def runs(self, block: Block) -> str:
        text = block.text.replace(ADDRESS, self.gateway.url)
        command = ["bash", "-euo", "pipefail", "-c", text] if block.language in SHELL else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, f"{block.place}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**inherited, "PATH": path, "HOME": str(self.folder), "FAREBOX_URL": self.gateway.url, "COLUMNS": "200"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxProcess]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.example.yaml").read_text())
    with running_farebox(tmp_path_factory.mktemp("documented"), config) as running:
        yield running


def pages_with(languages: set[str]) -> list[Path]:
    return [
        page
        for page in PAGES
        if page.name not in ELSEWHERE
        and any(block.language in languages and "not run" not in block.notes for block in blocks(page))
    ]


def check_output(block: Block, output: str) -> None:
    for text in block.expected:
        assert text in output, f"{block.place}: {text!r} is not in\n{output}"
    for text in block.unexpected:
        assert text not in output, f"{block.place}: {text!r} is in\n{output}"


@pytest.mark.parametrize("page", pages_with(SHELL | PYTHON), ids=lambda page: page.name)
def test_commands_of_a_page_give_the_documented_output(gateway: FareboxProcess, tmp_path: Path, page: Path) -> None:
    reader = Reader(gateway, tmp_path)
    for block in blocks(page):
        if block.language not in SHELL | PYTHON or "not run" in block.notes:
            continue
        if block.language in SHELL and not STARTS.sub("", block.text).strip():
            continue
        check_output(block, reader.runs(block))


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page))], ids=lambda page: page.name)
def test_data_blocks_of_a_page_are_well_formed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "yaml" and page.name != "clients.md":
            check_yaml(block)
        assert block.language, f"{block.place}: the fence does not say what it holds"
        assert "not run" not in block.notes or len(block.notes["not run"]) > 20, f"{block.place}: why is it not run?"


def check_yaml(block: Block) -> None:
    if "values" in block.notes:
        yaml.safe_load(block.text)
        return
    keys = dict.fromkeys(re.findall(r"os\.environ/(\w+)", block.text), "k")
    data = yaml.safe_load(block.text)
    assert data, block.place
    parse_config(block.text, block.place, keys)


def test_commands_are_written_in_fenced_blocks() -> None:
    """An indented block is for formulas and output: a command in it would be run by nobody."""
    command = re.compile(r"^    (?:curl|farebox|docker|pip|export|deploy/|make [a-z])\b.*$", re.MULTILINE)
    fenced = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
    pages = [page for page in PAGES if page.name != "benchmarks.md"]  # made by bench/report.py
    unfenced = {page.name: command.findall(fenced.sub("", page.read_text())) for page in pages}
    assert {page: lines for page, lines in unfenced.items() if lines} == {}


def test_pages_with_tests_of_their_own_exist() -> None:
    for page, test in ELSEWHERE.items():
        assert any(path.name == page for path in PAGES)
        assert (ROOT / test).is_file(), test
