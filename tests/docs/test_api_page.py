"""docs/api.md lists every endpoint of the control API, with what a viewer may do, and every command; docs/workflows.md every field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from gateway.cli.main import app
from gateway.endpoints.api.openapi import document
from gateway.endpoints.api.steps import StepBody
from gateway.endpoints.api.workflows import WorkflowBody

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| [^|]+ \| (?:`(\w+ /api/\S+)`)? ?\| ([^|]*) ?\| ?(yes)? ?\|$", PAGE, re.MULTILINE)


def commands(group: Any, name: str) -> Iterator[str]:
    """The names of all commands, which are loaded when they are asked for."""
    if not hasattr(group, "list_commands"):
        yield name
        return
    context = group.context_class(group)
    for word in group.list_commands(context):
        yield from commands(group.get_command(context, word), f"{name} {word}")


def test_page_lists_every_endpoint_and_whether_a_viewer_may_use_it() -> None:
    operations = {
        f"{method.upper()} {path}": operation["x-role"] == "viewer"
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    }
    assert {endpoint: viewer == "yes" for endpoint, _, viewer in ROWS if endpoint} == operations


def test_page_lists_every_command() -> None:
    listed = {word.removesuffix(" --apply") for _, cell, _ in ROWS for word in re.findall(r"`(farebox [^`]+)`", cell)}
    assert listed == set(commands(get_command(app), "farebox"))


def test_workflow_page_describes_every_field_of_a_declaration() -> None:
    page = (DOCS / "workflows.md").read_text(encoding="utf-8")
    for heading, body in (("The workflow's fields", WorkflowBody), ("A step's fields", StepBody)):
        table = page.partition(f"## {heading}")[2].partition("\n## ")[0]
        assert set(re.findall(r"`(\w+)`", table)) >= body.model_fields.keys()
