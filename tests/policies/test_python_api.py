"""The public names of `policies`, the table that lists them, and the examples of docs/python-api.md."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import policies

DOCUMENT = Path(__file__).parents[2] / "docs" / "python-api.md"


def test_the_examples_run_as_they_are_shown() -> None:
    failed, tried = doctest.testfile(str(DOCUMENT), module_relative=False, encoding="utf-8", report=True)
    assert failed == 0
    assert tried > 40


def test_the_table_names_everything_once() -> None:
    listed = re.findall(r"^\| `(\w+)` \| .+ \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(policies.__all__)


@pytest.mark.parametrize("name", policies.__all__)
def test_every_name_is_there_and_every_function_says_what_it_does(name: str) -> None:
    found = getattr(policies, name)
    assert name in dir(policies)
    if inspect.isfunction(found):
        assert found.__doc__, f"{name} says nothing about itself"


def test_a_name_that_is_not_public_is_missed_like_any_other() -> None:
    with pytest.raises(AttributeError, match="module 'policies' has no attribute 'nothing'"):
        policies.nothing  # noqa: B018


SCRIPT = """
import sys
import policies.classify.classifier  # the module of the same name must not take the function's place
from policies import allocate, classify
assert callable(classify) and callable(allocate)
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded & {"gateway", "litellm", "pydantic", "starlette", "tiktoken", "orjson", "yaml"}))
print("policies.compression" in sys.modules)
"""


def test_it_works_without_the_gateway_and_loads_what_is_used() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["", "False"]
