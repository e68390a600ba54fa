"""Rules of style that no linter knows: sizes, names, pairing of modules and tests, forbidden words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("gateway/**/*.py"), *ROOT.glob("policies/**/*.py")])
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "types", "misc"}
FORBIDDEN_WORDS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
CLOCKS = re.compile(r"\b(?:datetime\.now|datetime\.utcnow|date\.today|time\.time|time\.monotonic|perf_counter)\b")


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_file_is_short_and_has_an_allowed_name(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    assert path.stem not in FORBIDDEN_NAMES
    assert not FORBIDDEN_WORDS.search(text)


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_functions_are_short(path: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_module_has_no_global_statement(path: Path) -> None:
    changed = [node.names for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Global)]
    assert changed == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("policies/**/*.py")), ids=_id)
def test_policies_read_no_clock(path: Path) -> None:
    assert not CLOCKS.search(path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_module_has_a_docstring(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "the module has no docstring"


def test_every_policies_module_has_a_test_module() -> None:
    modules = {path.stem for path in ROOT.glob("policies/*.py")} | {
        path.parent.name for path in ROOT.glob("policies/*/__init__.py")
    }
    tests = " ".join(path.stem for path in ROOT.glob("tests/policies/test_*.py"))
    untested = {name for name in modules - {"__init__", "errors"} if name not in tests}
    assert untested == set()


def test_locks_are_hashed_and_name_no_download_host() -> None:
    for lock in ROOT.glob("requirements/*.txt"):
        text = lock.read_text()
        assert "://" not in text
        pinned = re.findall(r"^[a-z0-9][^\s=]*==", text, re.MULTILINE)
        assert len(pinned) <= text.count("--hash=sha256:")


def test_no_lock_with_download_hosts_is_committed() -> None:
    assert not (ROOT / "uv.lock").exists()
    for lock in ROOT.glob("**/package-lock.json"):
        if "node_modules" not in lock.parts:
            assert '"resolved"' not in lock.read_text()
