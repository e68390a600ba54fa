from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.amounts import AMOUNT_MAX, NANO_USD_PER_USD, UNITS, UNLIMITED, Amount, Limit, usd_text

counts = st.integers(-(10**9), 10**9)
amounts = st.builds(Amount, counts, counts, counts)
limits = st.builds(Limit, *[st.none() | st.integers(0, 10**9)] * 3)


@given(amounts, amounts)
def test_adding_then_subtracting_returns_the_original(amount: Amount, other: Amount) -> None:
    assert amount + other - other == amount


@given(limits, limits)
def test_tightening_is_commutative_and_takes_the_smaller_limit(first: Limit, second: Limit) -> None:
    both = first.tightened_by(second)
    assert both == second.tightened_by(first)
    for unit in UNITS:
        given_limits = [limit for limit in (first.of(unit), second.of(unit)) if limit is not None]
        assert both.of(unit) == (min(given_limits) if given_limits else None)


def test_capped_limit_is_lowered_in_its_own_units_only() -> None:
    assert Limit(1000, 5).capped_by(Limit(300, 9, 7)) == Limit(300, 5)
    assert Limit(1000).capped_by(UNLIMITED) == Limit(1000)


@pytest.mark.parametrize(
    ("limit", "override", "expected"),
    [
        (Limit(tokens=5), Limit(tokens=9), Limit(tokens=9)),
        (Limit(tokens=5, nano_usd=7), Limit(tokens=0), Limit(tokens=0, nano_usd=7)),
        (Limit(requests=1), UNLIMITED, Limit(requests=1)),
        (Limit(1, 2, 3), Limit(4, 5, 6), Limit(4, 5, 6)),
        (Limit(1, 2, 3), Limit(nano_usd=5), Limit(1, 5, 3)),
    ],
)
def test_override_replaces_only_the_units_it_sets(limit: Limit, override: Limit, expected: Limit) -> None:
    assert limit.replaced_by(override) == expected


def test_only_a_limit_without_any_unit_is_unlimited() -> None:
    assert UNLIMITED.is_unlimited
    assert not Limit(tokens=0).is_unlimited


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (-1, "-0.000000001"),
        (100, "0.0000001"),
        (500_000_000, "0.5"),
        (20 * NANO_USD_PER_USD, "20"),
        (-1_250_000_000, "-1.25"),
        (AMOUNT_MAX, "9007199.254740991"),
    ],
)
def test_usd_text_is_written_in_plain_digits(nano_usd: int, text: str) -> None:
    assert usd_text(nano_usd) == text


@given(st.integers(-AMOUNT_MAX, AMOUNT_MAX))
def test_usd_text_is_exact(nano_usd: int) -> None:
    text = usd_text(nano_usd)
    assert Decimal(text) * NANO_USD_PER_USD == nano_usd
    assert "e" not in text.lower()
