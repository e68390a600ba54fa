"""Every test that catalogue.toml and docs/promises.md name exists, and every case has tests or a reason why not."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
PROMISES = TESTS.parent / "docs" / "promises.md"
CASES: dict[str, dict[str, Any]] = tomllib.loads((TESTS / "catalogue.toml").read_text())
# `tests/a/test_b.py::test_c` in the page's text; only the file where all of it is meant.
_NAMED = re.compile(r"`tests/([\w/]+\.py)(?:::(\w+))?`")


@cache
def functions(file: str) -> frozenset[str]:
    nodes = ast.walk(ast.parse((TESTS / file).read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_catalogue_has_every_case() -> None:
    assert list(CASES) == [str(number) for number in range(1, 117)]


@pytest.mark.parametrize("number", CASES)
def test_case_names_existing_tests_or_a_reason(number: str) -> None:
    case = CASES[number]
    assert case.keys() <= {"tier", "case", "tests", "reason"}
    assert case["tier"] in ("c", "n", "r")
    assert case.get("tests") or len(case.get("reason", "")) > 40, "say why nothing tests it"
    for named in case.get("tests", []):
        file, _, name = named.partition("::")
        assert name in functions(file), f"{named} is not there any more"


def test_tests_named_by_the_promises_page_exist() -> None:
    named = _NAMED.findall(PROMISES.read_text())
    assert len(named) > 40
    for file, name in named:
        assert (TESTS / file).exists(), file
        assert not name or name in functions(file), f"{file}::{name}"


def test_every_promise_has_mechanism_tests_and_limits() -> None:
    parts = re.split(r"^## (P\d+) ", PROMISES.read_text(), flags=re.MULTILINE)
    assert parts[1::2] == [f"P{number}" for number in range(1, 16)]
    for text in parts[2::2]:
        assert "**Mechanism**" in text
        assert "**Tests**" in text
        assert "**Not promised**" in text
