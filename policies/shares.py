"""Divides a whole number of tokens by weights and under caps, without losing or inventing any."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from heapq import heappop, heappush


def proportional_shares(total: int, weights: Sequence[int], caps: Sequence[int]) -> list[int]:
    """Shares of `total` in proportion to `weights`, none above its cap; what a cap frees goes to the others.

    The shares sum to min(`total`, sum of `caps`) exactly. All numbers are ≥ 0; weight 0 gets something only once all other
    shares are at their caps. Raising a weight never lowers its share, and raising `total` never lowers a share (unlike the
    largest-remainder method). Method: water-filling for the caps, then Webster's method for whole numbers: each token goes where
    weight ÷ (2 × share + 1) is largest; ties go to the earlier position. Raises ValueError for negative numbers and for
    lists of different lengths.
    """
    if len(weights) != len(caps) or min((total, *weights, *caps)) < 0:
        raise ValueError("weights and caps must be as many, and nothing may be negative")
    shares = [0] * len(weights)
    remaining, unfilled = _fill_caps(min(total, sum(caps)), weights, caps, shares)
    if unfilled:
        _round_shares(remaining, unfilled, weights, caps, shares)
    elif remaining:
        weightless = [position for position, weight in enumerate(weights) if weight == 0]
        equal = proportional_shares(remaining, [1] * len(weightless), [caps[position] for position in weightless])
        for position, share in zip(weightless, equal, strict=True):
            shares[position] = share
    return shares


def _fill_caps(remaining: int, weights: Sequence[int], caps: Sequence[int], shares: list[int]) -> tuple[int, list[int]]:
    """Fill the shares that reach their caps, the smallest ratio of cap to weight first. Returns what is left, and the rest."""
    weighted = [position for position, weight in enumerate(weights) if weight > 0]
    weighted.sort(key=lambda position: Fraction(caps[position], weights[position]))
    weight_left = sum(weights)
    for filled, position in enumerate(weighted):
        if remaining * weights[position] < caps[position] * weight_left:
            return remaining, weighted[filled:]
        shares[position] = caps[position]
        remaining -= caps[position]
        weight_left -= weights[position]
    return remaining, []


def _round_shares(
    remaining: int, unfilled: Sequence[int], weights: Sequence[int], caps: Sequence[int], shares: list[int]
) -> None:
    """Round the exact shares half up, which is Webster's result for whatever they then sum to, and correct that sum token by token."""
    weight = sum(weights[position] for position in unfilled)
    for position in unfilled:
        shares[position] = (2 * remaining * weights[position] + weight) // (2 * weight)
    missing = remaining - sum(shares[position] for position in unfilled)
    if missing:
        _correct_sum(missing, weights, caps, shares)


def _correct_sum(missing: int, weights: Sequence[int], caps: Sequence[int], shares: list[int]) -> None:
    """Give tokens, one at a time, to the share that is owed most, or take them from the one that is owed least, even if it is capped."""
    delta = 1 if missing > 0 else -1
    ranked: list[tuple[Fraction, int]] = []

    def rank(position: int) -> None:
        if weights[position] and 0 <= shares[position] + delta <= caps[position]:
            heappush(ranked, (Fraction(-delta * weights[position], 2 * shares[position] + delta), delta * position))

    for position in range(len(weights)):
        rank(position)
    for _ in range(abs(missing)):
        position = delta * heappop(ranked)[1]
        shares[position] += delta
        rank(position)
