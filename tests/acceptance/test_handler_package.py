"""The package of docs/routing.md, installed beside a running gateway: its handler is used."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.acceptance.serving import ProviderThread, Served, model
from tests.farebox_process import running_farebox, tagged

ROOT = Path(__file__).parents[2]


def block_of(page: str, language: str) -> str:
    code_blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert len(code_blocks) == 1
    return str(code_blocks[0])


def install(folder: Path) -> None:
    """Writes the files that pip would install."""
    page = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
    points = tomllib.loads(block_of(page, "toml"))["project"]["entry-points"]
    code = block_of(page, "python")
    assert len(code.strip().splitlines()) <= 22
    ((group, handlers),) = points.items()
    ((intent, target),) = handlers.items()
    (folder / f"{target.partition(':')[0]}.py").write_text(code, encoding="utf-8")
    info = folder / "invoices-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: invoices\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{intent} = {target}\n", encoding="utf-8")


@pytest.mark.xdist_group("acceptance-routing")
def test_documented_handler_package_checks_answers_and_reroutes(tmp_path: Path) -> None:
    install(tmp_path)
    with ProviderThread() as provider:
        models = [model(provider.openai_url, "small"), model(provider.openai_url, "medium")]
        config = {
            "model_list": models,
            "tiers": {"fast": ["small"], "balanced": ["medium"]},
            "settings": {"orchestration_enabled": True},
        }
        with running_farebox(tmp_path, config, environment={"PYTHONPATH": str(tmp_path)}) as gateway:
            served = Served(gateway, provider)
            for intent, models_asked in (("extract", ["small", "medium"]), ("generate", ["small", "small"])):
                headers = tagged("mail", intent, "read", intent=intent)
                text = 'What is due? {"fake": {"text": "It is due soon."}}'
                actions = [
                    served.chat(headers, text, model="auto", max_tokens=64).headers["x-budget-actions"]
                    for _ in range(2)
                ]
                assert actions == [f"route={name}" for name in models_asked]
            (failed, _) = reversed(gateway.get("/api/runs/extract/calls").json()["calls"])
            assert failed["decisions"][-1]["answer_failed"] == ["no amount"]
