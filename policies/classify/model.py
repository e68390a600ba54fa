"""The trained model: multinomial logistic regression over the evidence, applied in plain Python.

Its weights (`weights.json`) are trained by `bench/train_intents.py` on sentences of our own. A single temperature calibrates
its probabilities (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from policies.intents import Intent
from policies.values import value_class

# Weights are stored as integer hundredths: rounding does not change any probability noticeably.
HUNDREDTHS = 100.0


@value_class
class Weights:
    """`by_feature` holds one weight per intent, in the order of `intents`, in hundredths."""

    intents: tuple[Intent, ...]
    bias: tuple[float, ...]
    by_feature: Mapping[str, tuple[int, ...]]
    temperature: float


@cache
def weights() -> Weights:
    """Load the shipped weights, once per process."""
    data = json.loads(files("policies.classify").joinpath("weights.json").read_text("utf-8"))
    return Weights(
        intents=tuple(Intent(name) for name in data["intents"]),
        bias=tuple(data["bias"]),
        by_feature=data["weights"],
        temperature=data["temperature"],
    )


def probabilities(features: Mapping[str, float], trained: Weights) -> list[tuple[Intent, float]]:
    """The probability of each intent, most likely first; they sum to 1. Features without a trained weight are ignored."""
    scores = [bias * HUNDREDTHS for bias in trained.bias]
    by_feature = trained.by_feature
    for name, value in features.items():
        row = by_feature.get(name)
        if row is not None:
            scores = [score + value * weight for score, weight in zip(scores, row, strict=True)]
    scaled = [score / (HUNDREDTHS * trained.temperature) for score in scores]
    top = max(scaled)
    exponentials = [math.exp(score - top) for score in scaled]
    total = sum(exponentials)
    ranked = sorted(zip(exponentials, trained.intents, strict=True), reverse=True)
    return [(intent, power / total) for power, intent in ranked]
