"""aider with the snippet that people are given. It has no tools: it changes files by the blocks that the model writes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import yaml

from gateway.cli.client_snippets import SnippetValues, snippet
from tests.acceptance.serving import Served
from tests.clients.client_process import AIDER_FOLDER, SECONDS_MAX, environment_of, need_outside_clients, run
from tests.clients.serving_clients import refusals, run_of

pytestmark = [pytest.mark.xdist_group("clients-aider"), pytest.mark.timeout(170)]

BEFORE, AFTER = "print('time')\n", "print('people')\n"
EDIT = f"clock.py\n```python\n<<<<<<< SEARCH\n{BEFORE}=======\n{AFTER}>>>>>>> REPLACE\n```\n"
# A shell in the background leaves its children deaf to Ctrl-C.
HEARING_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)
QUIET = {
    "AIDER_ANALYTICS": "false",
    "AIDER_CHECK_UPDATE": "false",
    "AIDER_GIT": "false",
    "AIDER_PRETTY": "false",
    "AIDER_SHOW_MODEL_WARNINGS": "false",
    "AIDER_SHOW_RELEASE_NOTES": "false",
    "COLUMNS": "1000",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    need_outside_clients()
    if not (AIDER_FOLDER / "aider").exists():
        pytest.skip("aider is not installed: `make test-clients` makes .venv-aider")
    (tmp_path / "clock.py").write_text(BEFORE)
    return tmp_path


def command(served: Served, workflow: str, run_id: str) -> list[str]:
    """What is typed into a shell: the snippet, its last line with a message and the file to change."""
    text = snippet("aider", SnippetValues(served.gateway.url, "local", "fake", workflow, run_id, "draft")).rstrip()
    return ["bash", "-c", text + " --edit-format diff --yes-always --message 'Print people.' clock.py"]


def environment() -> dict[str, str]:
    return QUIET | {"PATH": f"{AIDER_FOLDER}:{os.environ['PATH']}"}


def test_aider_edit_is_charged_to_its_run(served: Served, folder: Path) -> None:
    served.provider.script(text=EDIT)
    done = run(command(served, "roomy", "s-aider"), folder, **environment())
    assert (folder / "clock.py").read_text() == AFTER, done
    assert served.last.body["stream"] is True
    shown = run_of(served, "s-aider")
    assert (shown["workflow"], [step["step"] for step in shown["steps"]]) == ("roomy", ["draft"])
    assert shown["requests"]["settled"] == served.seen() == 1
    assert shown["tokens"]["settled"] > 0


def test_aider_model_headers_take_precedence_over_the_path(served: Served, folder: Path) -> None:
    headers = {"x-workflow-run-id": "s-aider-headers", "x-workflow-step": "review"}
    settings = [{"name": "openai/fake", "extra_params": {"extra_headers": headers}}]
    (folder / ".aider.model.settings.yml").write_text(yaml.safe_dump(settings))
    served.provider.script(text=EDIT)
    done = run(command(served, "roomy", "not-this-one"), folder, **environment())
    assert (folder / "clock.py").read_text() == AFTER, done
    shown = run_of(served, "s-aider-headers")
    assert (shown["workflow"], [step["step"] for step in shown["steps"]]) == ("roomy", ["review"])


def test_aider_shows_the_refusal_and_its_retries_end_with_ctrl_c(served: Served, folder: Path) -> None:
    """LiteLLM makes an `APIError` of every 402, and aider repeats those for a minute, whatever the answer says."""
    before = refusals(served)
    process = subprocess.Popen(
        [str(AIDER_FOLDER / "python"), "-c", HEARING_CTRL_C, *command(served, "tiny", "s-aider-refused")],
        cwd=folder,
        env=environment_of(folder) | environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    overdue = threading.Timer(SECONDS_MAX, os.killpg, (process.pid, signal.SIGKILL))
    overdue.start()
    with process:
        output_lines: list[str] = []
        for line in process.stdout or ():
            output_lines.append(line)
            if sum(line.startswith("Retrying in") for line in output_lines) == 2:
                os.killpg(process.pid, signal.SIGINT)
    overdue.cancel()
    shown = [line for line in output_lines if line.startswith("litellm.APIError")]
    assert "the whole budget of run 's-aider-refused' is 5 tokens" in shown[0], output_lines
    assert 2 <= refusals(served) - before < 9, "it would have tried nine times"
    assert served.seen() == 0
    assert run_of(served, "s-aider-refused")["tokens"]["settled"] == 0
