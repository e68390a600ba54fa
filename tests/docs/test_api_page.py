"""docs/api.md lists every endpoint of the control API, with what a viewer may do, and every command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from gateway.cli.main import app
from gateway.endpoints.api.openapi import document

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
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
