"""Value classes are not frozen at run time, which would be slow: mypy has to reject every assignment to a field."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

from policies.amounts import Amount

_ASSIGNING_PROGRAM = """
from policies.amounts import Amount

def spend(amount: Amount) -> None:
    amount.tokens = 0
"""


def test_mypy_rejects_assignment_to_a_field(tmp_path: Path) -> None:
    program = tmp_path / "changed.py"
    program.write_text(_ASSIGNING_PROGRAM)
    output, _, status = api.run([str(program), "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent"])
    assert status == 1
    assert 'Property "tokens" defined in "Amount" is read-only' in output


def test_equal_values_are_the_same_dict_key() -> None:
    assert {Amount(1, 2, 3): "first"}[Amount(1, 2, 3)] == "first"


def test_assignment_to_an_unknown_field_raises() -> None:
    with pytest.raises(AttributeError):
        Amount().token = 1  # type: ignore[attr-defined]
