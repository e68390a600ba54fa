"""The README as a stranger follows it: `make run` in a source tree, then every command and snippet in its order.

    FAREBOX_TEST_RELEASE=1 .venv/bin/python -m pytest -s tests/acceptance/test_readme.py

does the same from a clean clone, with a new venv and an empty home, and tells how long the first answered call took.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.fences import Block, blocks
from tests.ports import free_port

pytestmark = [pytest.mark.xdist_group("readme"), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ADDRESS = "http://127.0.0.1:4000"
BLOCKS = list(blocks(README))
READY_SECONDS = 60.0


@dataclass
class Tree:
    """A source tree to run commands in, with the port that is used instead of 4000."""

    folder: Path
    port: int
    home: Path
    # What is installed is what is tested: an old time stamp must not install the links into everybody's venv.
    make_options: tuple[str, ...] = ("-o", ".venv/runtime")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8", **_package_index()}

    def type(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text.replace(ADDRESS, self.url)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def made_run(self, ready_s: float = READY_SECONDS) -> Iterator[float]:
        """`make run`, as the README has it; gives the seconds until the gateway was ready. Ctrl-C ends it."""
        (command,) = (block.text.split("#")[0].strip() for block in BLOCKS if block.text.startswith("make run"))
        began_s = time.monotonic()
        log = self.home / "make-run.log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [*command.split(), *self.make_options, f"PORT={self.port}"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            ) as process,
        ):
            try:
                while not _is_ready(self.url):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() - began_s < ready_s, log.read_text()
                    time.sleep(0.1)
                yield time.monotonic() - began_s
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def _package_index() -> dict[str, str]:
    """The variables by which this machine reaches the package index, if any."""
    return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def block_with(text: str) -> Block:
    (matching_block,) = (block for block in BLOCKS if text in block.text)
    return matching_block


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """This source tree without what gateways leave behind: links to everything else."""
    folder = tmp_path_factory.mktemp("readme")
    for entry in ROOT.iterdir():
        if entry.name not in (".git", ".farebox", "site", "dist"):
            (folder / entry.name).symlink_to(entry)
    working_tree = Tree(folder, free_port(), tmp_path_factory.mktemp("home"))
    with working_tree.made_run():
        yield working_tree


def test_first_call_gives_the_output_shown(tree: Tree) -> None:
    output = tree.type(block_with("curl -i").text).replace("\r", "")
    assert output.startswith("HTTP/1.1 200")
    assert "The fare was taken before the ride" in output
    shown = block_with("x-budget-run-remaining: ").text.strip().splitlines()
    assert len(shown) == 6
    for line in shown:
        assert line in output, f"{line!r} is not in\n{output}"


def test_diff_gives_a_client_that_spends_from_its_run(tree: Tree) -> None:
    added = [line[1:] for line in block_with("+client =").text.splitlines() if line.startswith("+")]
    script = "\n".join(
        [
            "import os",
            "from openai import OpenAI",
            "run_id = 'r-diff'",
            *added,
            "raw = client.chat.completions.with_raw_response.create(",
            "    model='mock', messages=[{'role': 'user', 'content': 'hi'}])",
            "print(raw.headers['x-workflow-run-id'], raw.headers['x-budget-run-limit'])",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", script.replace(ADDRESS, tree.url)],
        env={**tree.environment, "OPENAI_API_KEY": "local"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "r-diff 20000\n", done.stderr


def test_commands_and_addresses_in_the_text_work(tree: Tree) -> None:
    text = README.read_text()
    assert "OpenAI(" in tree.type(".venv/bin/farebox env --client openai-python")
    assert ".venv/bin/farebox env --client NAME" in text
    path = re.findall(r"`http://127.0.0.1:4000(/w/\S+)`", text)[0]
    output = tree.type(
        f"curl -si {ADDRESS}{path}/chat/completions -H 'content-type: application/json' "
        """-d '{"model": "mock", "messages": [{"role": "user", "content": "hi"}]}'"""
    )
    assert "x-workflow-run-id: r-17" in output
    assert "200" in tree.type(f"curl -s -o /dev/null -w '%{{http_code}}' {ADDRESS}/admin/runs/r-17")


def test_refused_call_gives_the_output_shown(tree: Tree) -> None:
    first, second = re.findall(r"(\{.*\})\n(\d{3})\n", tree.type(block_with("x-workflow-budget-tokens").text))
    assert (first[1], json.loads(first[0])["choices"][0]["finish_reason"]) == ("200", "length")
    body, status = block_with("run_budget_exceeded").text.splitlines()
    assert second[0].startswith(body.partition("…")[0])
    assert second[1] == status == "402"


def test_demo_reports_a_refusal_and_a_clamp(tree: Tree) -> None:
    output = tree.type(" ".join(["make demo", *tree.make_options]))
    assert "refused" in output
    assert "clamp" in output


def test_relative_links_name_existing_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README.read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.skipif(not os.environ.get("FAREBOX_TEST_RELEASE"), reason="a clean clone is made before a release")
@pytest.mark.timeout(900)
def test_clean_clone_answers_the_first_call(tmp_path: Path) -> None:
    """A new venv, an empty home, nothing but the package index: the time from the clone to the first answered call."""
    clone = Tree(tmp_path / "farebox", free_port(), tmp_path / "home", make_options=())
    clone.home.mkdir()
    began_s = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone.folder)], check=True, timeout=60)
    with clone.made_run(ready_s=800) as ready_s:
        assert "HTTP/1.1 200" in clone.type(block_with("curl -i").text)
        print(
            f"\nready after {ready_s:.1f} s, first answered call {time.monotonic() - began_s:.1f} s after the clone began"
        )
    shutil.rmtree(clone.folder)
