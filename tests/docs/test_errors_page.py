"""docs/errors.md is made from tables in the code, and the tables name everything that the code can say."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import doctor, errors
from gateway.error_guide import CHECKS, CODES, EVENTS, GUIDES, errors_page, explain
from gateway.runs.control import NO_SUCH_RUN
from gateway.store.runs import FINAL_STATES
from policies.budgets import Scope

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
LEVELS = {"warning": "warning", "error": "error", "exception": "error", "critical": "error"}
# Codes that are a provider's own, passed on; and the one place that hands a code through.
PASSED_ON = {"code", "denied.code", "error.code", "_code(value)"}
# Words in f-strings, and what they can be.
FILLED = {"scope": [scope.value for scope in Scope], "link.scope": [scope.value for scope in Scope]}
FILLED["gate.value"] = ["paused", "cancelled", "completed"]
FILLED["state"] = list(FINAL_STATES)


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        if "error_guide" not in path.parts:
            yield path, ast.parse(path.read_text())


def texts(node: ast.expr | None) -> set[str]:
    """Every text that the expression can be; its source where it is none."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    if isinstance(node, ast.BoolOp):
        return set().union(*(texts(value) for value in node.values if isinstance(value, ast.Constant)))
    if isinstance(node, ast.JoinedStr):
        possible = {""}
        for part in node.values:
            words = [part.value] if isinstance(part, ast.Constant) else FILLED[ast.unparse(part.value)]  # type: ignore[attr-defined]
            possible = {begun + str(word) for begun in possible for word in words}
        return possible
    if isinstance(node, ast.Subscript):  # str(error.get("code") or "upstream_error")[:200]
        return texts(node.value)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "str":
        return texts(node.args[0])
    return {ast.unparse(node)} if node is not None else set()


def codes_in_source() -> dict[str, set[str]]:
    """Every error code, and where it is said."""
    places: dict[str, set[str]] = {}
    for path, module in modules():
        for node in ast.walk(module):
            codes_of_call: set[str] = set()
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                codes_of_call = set().union(set(), *(texts(word.value) for word in node.keywords if word.arg == "code"))
                if name == "field" and len(node.args) > 2:
                    codes_of_call |= texts(node.args[2])
                if name in ("conflict", "Denied") and len(node.args) > 1:
                    codes_of_call |= texts(node.args[1])
            elif isinstance(node, ast.ClassDef):
                codes_of_call = {
                    word
                    for item in node.body
                    if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "code"
                    for word in texts(item.value)
                }
            for word in codes_of_call - PASSED_ON:
                places.setdefault(NO_SUCH_RUN if word == "NO_SUCH_RUN" else word, set()).add(path.name)
    return places


def events_in_source() -> dict[str, set[str]]:
    """Every log event at warning or above, with its levels."""
    levels_of_events: dict[str, set[str]] = {}
    for _, module in modules():
        for node in ast.walk(module):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if ast.unparse(node.func) == "getattr(_log, level)":  # a warning for an outage, an error for a fault
                for event in texts(node.args[0]):
                    levels_of_events.setdefault(event, set()).update(("warning", "error"))
            on, _, called = ast.unparse(node.func).rpartition(".")
            if on.endswith("_log") and called in LEVELS:
                for event in texts(node.args[0]) - {"event"}:
                    levels_of_events.setdefault(event, set()).add(LEVELS[called])
            elif called == "report" and isinstance(node.args[0], ast.Constant):  # the alerts, which are logged and sent
                for event in texts(node.args[0]):
                    levels_of_events.setdefault(event, set()).add("warning")
    return levels_of_events


def test_every_error_code_is_explained_and_no_unused_one() -> None:
    used_codes = set(codes_in_source())
    assert len(used_codes) > 40
    assert used_codes - set(CODES) == set(), "add them to gateway/error_guide/codes.py"
    assert set(CODES) - used_codes == set(), "nobody says these any more"


def test_documented_statuses_equal_those_of_the_error_classes() -> None:
    for name, member in vars(errors).items():
        if isinstance(member, type) and issubclass(member, errors.GatewayError):
            assert str(member.status) in CODES[member.code].label, name


def test_every_log_event_at_warning_or_above_is_explained_with_its_level() -> None:
    logged = events_in_source()
    assert len(logged) > 35
    assert set(logged) == set(EVENTS)
    for event, levels in logged.items():
        assert set(EVENTS[event].label.split(", ")) == levels, event


def test_every_doctor_check_is_explained() -> None:
    checks = set(re.findall(r'Finding\(\s*"([\w ]+)"', Path(doctor.__file__).read_text()))
    assert checks | {"gateway"} == set(CHECKS)


def test_every_log_event_of_an_alert_is_explained() -> None:
    """An alert's log events, as docs/runbooks.md pairs them, are explained here."""
    alerts = (ROOT / "docs" / "runbooks.md").read_text().partition("## Alerts")[2].partition("\n## ")[0]
    paired = [
        name
        for cell in re.findall(r"^\| (`[^|]+) \|", alerts, re.MULTILINE)
        for name in re.findall(r"`([a-z_]+)`", cell)
    ]
    assert len(paired) >= 6
    assert set(paired) <= set(EVENTS)


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_explanation_states_the_meaning_and_what_to_do(name: str) -> None:
    guide = GUIDES[name]
    for sentence in (guide.meaning, guide.remedy):
        assert not sentence[0].islower()
        assert sentence.endswith((".", "`."))
    assert guide.meaning.replace("`", "") in (explain(name) or "")


def test_errors_page_is_up_to_date() -> None:
    if os.environ.get("FAREBOX_WRITE_DOCS"):
        PAGE.write_text(errors_page())
    assert PAGE.read_text() == errors_page(), "FAREBOX_WRITE_DOCS=1 with this test writes the page anew"
