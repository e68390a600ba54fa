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


def test_documented_examples_produce_the_documented_output() -> None:
    failed, tried = doctest.testfile(str(DOCUMENT), module_relative=False, encoding="utf-8", report=True)
    assert failed == 0
    assert tried > 40


def test_documented_table_lists_every_public_name_once() -> None:
    listed = re.findall(r"^\| `(\w+)` \| .+ \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(policies.__all__)


@pytest.mark.parametrize("name", policies.__all__)
def test_every_public_name_exists_and_every_function_has_a_docstring(name: str) -> None:
    exported = getattr(policies, name)
    assert name in dir(policies)
    if inspect.isfunction(exported):
        assert exported.__doc__, f"{name} says nothing about itself"


def test_unknown_name_raises_attribute_error() -> None:
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


def test_import_loads_neither_the_gateway_nor_unused_submodules() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["", "False"]
