"""What earlier runs say about a step's demand: percentiles of aging samples, and whose samples count."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.allocation import StepHistory, decayed_p95, history_of


@dataclass(frozen=True)
class Used:
    tokens: int
    weight: float = 1.0


@pytest.mark.parametrize(
    ("samples", "p95"),
    [
        ([], None),
        ([Used(500)], 500),
        ([Used(tokens) for tokens in range(1, 101)], 95),
        ([Used(100)] * 19 + [Used(9000)], 100),
        ([Used(100)] * 18 + [Used(9000)] * 2, 9000),
        ([Used(9000, 0.01)] * 10 + [Used(100, 1.0)] * 10, 100),  # the large samples are old
        ([Used(100, 0.01)] * 10 + [Used(9000, 1.0)], 9000),
        ([Used(100, 0.0)], None),
    ],
)
def test_p95_is_weighted_by_the_age_of_samples(samples: list[Used], p95: int | None) -> None:
    assert decayed_p95(samples) == p95


@given(st.lists(st.builds(Used, st.integers(1, 10_000), st.floats(1e-6, 1)), min_size=1, max_size=60))
def test_p95_is_a_sample_and_covers_95_percent_of_the_weight(samples: list[Used]) -> None:
    p95 = decayed_p95(samples)
    assert p95 in {sample.tokens for sample in samples}
    covered = sum(sample.weight for sample in samples if sample.tokens <= p95)
    assert covered >= 0.95 * sum(sample.weight for sample in samples) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("own", "alike", "history"),
    [
        (10, 50, StepHistory(10, 100, "step")),
        (9, 50, StepHistory(50, 700, "intent")),
        (9, 9, None),
        (0, 0, None),
    ],
)
def test_step_with_fewer_than_ten_runs_uses_the_history_of_its_intent(
    own: int, alike: int, history: StepHistory | None
) -> None:
    assert history_of([Used(100)] * own, [Used(700)] * alike) == history
