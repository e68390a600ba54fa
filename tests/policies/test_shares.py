"""Dividing tokens: exact sums, caps and fairness for any numbers."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policies.shares import proportional_shares

Parts = list[tuple[int, int]]
PARTS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=12)
TOTAL = st.integers(0, 60_000)


def shares_of(total: int, parts: Parts) -> list[int]:
    return proportional_shares(total, [weight for weight, _ in parts], [cap for _, cap in parts])


@pytest.mark.parametrize(
    ("total", "weights", "caps", "shares"),
    [
        (100, [1, 1, 1], [100, 100, 100], [34, 33, 33]),
        (100, [2, 1, 1], [100, 100, 100], [50, 25, 25]),
        (
            10,
            [3, 3, 1],
            [10, 10, 10],
            [5, 4, 1],
        ),  # 4.29, 4.29, 1.43 round to 9; the token left is due to all three alike
        (100, [1, 1, 1], [10, 100, 100], [10, 45, 45]),  # what a cap frees goes to the others
        (100, [8, 1, 1], [20, 30, 100], [20, 30, 50]),  # what one cap frees fills the next cap
        (100, [1, 1], [20, 30], [20, 30]),  # never more than the caps
        (7, [0, 1], [5, 5], [2, 5]),  # weight 0 gets only what the others cannot take
        (7, [0, 0, 0], [5, 1, 5], [3, 1, 3]),
        (0, [1, 2], [5, 5], [0, 0]),
        (5, [], [], []),
        (3, [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]),
    ],
)
def test_shares_follow_weights_caps_and_remainders(
    total: int, weights: list[int], caps: list[int], shares: list[int]
) -> None:
    assert proportional_shares(total, weights, caps) == shares


@pytest.mark.parametrize(
    ("total", "weights", "caps"), [(-1, [1], [1]), (1, [-1], [1]), (1, [1], [-1]), (1, [1, 1], [1])]
)
def test_negative_or_mismatched_arguments_are_refused(total: int, weights: list[int], caps: list[int]) -> None:
    with pytest.raises(ValueError, match="negative"):
        proportional_shares(total, weights, caps)


@given(TOTAL, PARTS)
def test_shares_sum_exactly_and_none_exceeds_its_cap(total: int, parts: Parts) -> None:
    shares = shares_of(total, parts)
    assert sum(shares) == min(total, sum(cap for _, cap in parts))
    assert all(0 <= share <= cap for share, (_, cap) in zip(shares, parts, strict=True))


@given(TOTAL, PARTS, st.integers(0, 11), st.integers(1, 10_000))
def test_higher_weight_never_lowers_the_share(total: int, parts: Parts, at: int, more: int) -> None:
    at %= len(parts)
    heavier = [*parts]
    heavier[at] = (parts[at][0] + more, parts[at][1])
    assert shares_of(total, heavier)[at] >= shares_of(total, parts)[at]


@given(TOTAL, PARTS)
@example(10, [(3, 99), (3, 99), (1, 99)])
def test_one_more_token_lowers_no_share(total: int, parts: Parts) -> None:
    """With largest remainders it could: by 3, 3, 1, 10 tokens are 4, 4, 2, and 11 are 5, 5, 1 (the Alabama paradox)."""
    pairs = zip(shares_of(total, parts), shares_of(total + 1, parts), strict=True)
    assert all(before <= after for before, after in pairs)


@given(TOTAL, PARTS)
def test_heavier_uncapped_part_gets_at_least_as_much(total: int, parts: Parts) -> None:
    shares = shares_of(total, parts)
    for share, (weight, cap) in zip(shares, parts, strict=True):
        for other, (other_weight, _) in zip(shares, parts, strict=True):
            assert weight <= other_weight or share == cap or share >= other


@given(TOTAL, PARTS)
def test_uncapped_shares_are_within_one_token_of_the_exact_proportion(total: int, parts: Parts) -> None:
    """Among parts below their cap, shares ÷ weights agree to less than one token."""
    shares = shares_of(total, parts)
    level = [(share, weight) for share, (weight, cap) in zip(shares, parts, strict=True) if weight and share < cap]
    for share, weight in level:
        for other, other_weight in level:
            assert (share - 1) * other_weight < (other + 1) * weight
