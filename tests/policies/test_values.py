"""Values are not frozen by Python, for its price; that mypy sees every change of one is what the promise rests on."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

from policies.amounts import Amount

_CHANGED = """
from policies.amounts import Amount

def spend(amount: Amount) -> None:
    amount.tokens = 0
"""


def test_mypy_refuses_to_change_a_value(tmp_path: Path) -> None:
    program = tmp_path / "changed.py"
    program.write_text(_CHANGED)
    says, _, status = api.run([str(program), "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent"])
    assert status == 1
    assert 'Property "tokens" defined in "Amount" is read-only' in says


def test_equal_values_are_one_key() -> None:
    assert {Amount(1, 2, 3): "first"}[Amount(1, 2, 3)] == "first"


def test_a_value_has_no_room_for_a_misspelt_field() -> None:
    with pytest.raises(AttributeError):
        Amount().token = 1  # type: ignore[attr-defined]
