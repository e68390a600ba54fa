"""Measure the shipped intent classifier. `make eval-intents` runs

    python -m bench.eval_intents

The evaluation steps are 398 real ones in `intents/dev.jsonl`, found through FAREBOX_REFERENCE or beside the repository;
their licences differ, so they are not part of it, and nothing is trained on them. Without them, our own held-out
sentences are used, and the first line says so. A fold never sees its own sources: what is fitted (the temperature) is
fitted on the other folds.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from policies.classify import Classification, StepText, classify
from policies.classify.features import evidence_of
from policies.classify.model import Weights, probabilities, weights
from policies.classify.rules import classify_by_rules
from policies.intents import Intent

ROOT = Path(__file__).parent.parent
FOLDS = 5
# The classifier's default threshold (setting orchestration_intent_classification_…).
THRESHOLD = 0.7
BINS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled step; `second` is an acceptable alternative, `source` the project that it is from."""

    step: StepText
    label: Intent
    second: Intent | None
    source: str
    difficulty: str
    kind: str


@dataclass(frozen=True, slots=True)
class JudgedCase:
    """A case with the answer that it got."""

    case: Case
    answer: Classification

    @property
    def strict(self) -> bool:
        """The answer is the label."""
        return self.answer.intent is self.case.label

    @property
    def either(self) -> bool:
        """The answer is the label or its accepted alternative."""
        return self.answer.intent in (self.case.label, self.case.second)


def reference_folder() -> Path:
    """Where the reference data would be."""
    return Path(os.environ.get("FAREBOX_REFERENCE") or ROOT.parent / "shared" / "reference")


def load_cases() -> tuple[list[Case], str]:
    """The cases, and a name for them."""
    path = reference_folder() / "intents" / "dev.jsonl"
    if path.is_file():
        return [_real_case(row) for row in _rows(path)], "real steps that the model was not trained on"
    held = ROOT / "bench" / "intents" / "heldout.jsonl"
    return [_own_case(row) for row in _rows(held)], (
        "our own held-out sentences, because intents/dev.jsonl is not there (set FAREBOX_REFERENCE): figures are flattering"
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def _real_case(row: dict[str, Any]) -> Case:
    schema = row.get("schema")
    shape = (schema if isinstance(schema, str) else json.dumps(schema)) if schema else row["response_format"]
    step = StepText(
        row["step_name"], row["workflow"], row["system"], row["prompt"] or "", tuple(row["tools"] or ()), shape
    )
    second = Intent(row["second_label"]) if row["second_label"] else None
    return Case(step, Intent(row["label"]), second, row["source"]["repo"], row["difficulty"], row["kind"])


def _own_case(row: dict[str, Any]) -> Case:
    step = StepText(row["step"], None, row["system"], row["prompt"], tuple(row["tools"]), row["response_format"])
    return Case(
        step,
        Intent(row["label"]),
        None,
        row["label"],
        "own",
        "llm" if row["prompt"] or row["system"] else "step_name_only",
    )


def judge(cases: Sequence[Case]) -> list[JudgedCase]:
    """Ask the shipped classifier."""
    return [JudgedCase(case, classify(case.step, confidence_threshold=THRESHOLD)) for case in cases]


def share(judged: Sequence[JudgedCase], good: Callable[[JudgedCase], bool]) -> float:
    """The share of good answers; 0 if there are none."""
    return sum(map(good, judged)) / len(judged) if judged else 0.0


def macro_f1(judged: Sequence[JudgedCase]) -> float:
    """The unweighted mean over intents of the harmonic mean of precision and recall."""
    scores = []
    for intent in Intent:
        hits = sum(one.strict for one in judged if one.case.label is intent)
        answered = sum(one.answer.intent is intent for one in judged)
        labelled = sum(one.case.label is intent for one in judged)
        if labelled:
            scores.append(2 * hits / (answered + labelled))
    return statistics.fmean(scores)


def calibration_error(pairs: Sequence[tuple[float, bool]]) -> float:
    """Expected calibration error over ten equal bins (Naeini et al. 2015)."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for confidence, right in pairs:
        bins[min(9, int(confidence * 10))].append((confidence, right))
    gaps = (
        len(held) * abs(statistics.fmean(c for c, _ in held) - statistics.fmean(r for _, r in held))
        for held in bins.values()
    )
    return sum(gaps) / len(pairs)


def print_shares(judged: Sequence[JudgedCase]) -> None:
    """Strict and label-or-second, for all and for each part."""
    parts: dict[str, list[JudgedCase]] = {"all": list(judged)}
    for judged_case in judged:
        parts.setdefault(f"difficulty {judged_case.case.difficulty}", []).append(judged_case)
        parts.setdefault(f"kind {judged_case.case.kind}", []).append(judged_case)
        parts.setdefault(f"answered by {judged_case.answer.source}", []).append(judged_case)
    print(f"{'':34}{'n':>5}{'strict':>9}{'or second':>11}")
    for name in sorted(parts):
        held = parts[name]
        print(
            f"{name:34}{len(held):5}{share(held, lambda one: one.strict):9.3f}{share(held, lambda one: one.either):11.3f}"
        )
    by_source: dict[str, list[JudgedCase]] = defaultdict(list)
    for judged_case in judged:
        by_source[judged_case.case.source].append(judged_case)
    for source, held in sorted(by_source.items(), key=lambda item: -len(item[1])):
        print(
            f"  {source:32}{len(held):5}{share(held, lambda one: one.strict):9.3f}{share(held, lambda one: one.either):11.3f}"
        )
    means = [
        statistics.fmean(share(held, good) for held in by_source.values())
        for good in (lambda one: one.strict, lambda one: one.either)
    ]
    print(f"{'mean over sources':34}{len(by_source):5}{means[0]:9.3f}{means[1]:11.3f}")
    print(f"{'macro-F1':34}{'':5}{macro_f1(judged):9.3f}")


def print_confusion(judged: Sequence[JudgedCase]) -> None:
    """Rows are labels, columns are answers."""
    counts = Counter((one.case.label, one.answer.intent) for one in judged)
    print("\nConfusion (row: label, column: answer)\n" + " " * 12 + "".join(f"{intent[:6]:>8}" for intent in Intent))
    for label in Intent:
        print(f"{label:12}" + "".join(f"{counts[label, answer] or '.':>8}" for answer in Intent))


def print_reliability(judged: Sequence[JudgedCase]) -> None:
    """Stated confidence against measured accuracy, and how much is answered above a threshold."""
    print("\nReliability\nconfidence       n   promised   strict   or second")
    for low, high in pairwise(BINS):
        held = [one for one in judged if low <= one.answer.confidence < high]
        if held:
            promised = statistics.fmean(one.answer.confidence for one in held)
            shares = share(held, lambda one: one.strict), share(held, lambda one: one.either)
            print(f"{low:.1f} to {min(high, 1):.1f} {len(held):8}{promised:11.3f}{shares[0]:9.3f}{shares[1]:12.3f}")
    error = calibration_error([(one.answer.confidence, one.strict) for one in judged])
    print(f"expected calibration error {error:.3f}")
    for threshold in (0.5, 0.6, 0.7, 0.8):
        held = [one for one in judged if one.answer.confidence >= threshold]
        shares = share(held, lambda one: one.strict), share(held, lambda one: one.either)
        print(
            f"at least {threshold}: answers {len(held) / len(judged):.0%} at {shares[0]:.3f} strict, {shares[1]:.3f} label or second"
        )


def fitted_temperature(cases: Sequence[Case], trained: Weights) -> float:
    """The temperature with the least log loss on these cases, except those that the rules answer."""
    scored = [(evidence_of(case.step), case.label) for case in cases]
    asked = [(evidence.features, label) for evidence, label in scored if classify_by_rules(evidence, THRESHOLD) is None]

    def loss(temperature: float) -> float:
        heated = Weights(trained.intents, trained.bias, trained.by_feature, temperature)
        return -sum(math.log(max(1e-9, dict(probabilities(features, heated))[label])) for features, label in asked)

    return min((0.6 + 0.1 * tenth for tenth in range(30)), key=loss)


def folds_by_source(cases: Sequence[Case]) -> list[int]:
    """A fold for each case: sources, largest first, go to the fold that is smallest so far."""
    sizes = [0] * FOLDS
    fold_of: dict[str, int] = {}
    for source, count in Counter(case.source for case in cases).most_common():
        fold = sizes.index(min(sizes))
        fold_of[source] = fold
        sizes[fold] += count
    return [fold_of[case.source] for case in cases]


def print_cross_validation(judged: Sequence[JudgedCase]) -> None:
    """Each fold is judged with the temperature fitted on the other folds."""
    cases = [one.case for one in judged]
    fold_of = folds_by_source(cases)
    trained = weights()
    shares: list[tuple[float, float]] = []
    pairs: list[tuple[float, bool]] = []
    for fold in range(FOLDS):
        temperature = fitted_temperature([case for case, at in zip(cases, fold_of, strict=True) if at != fold], trained)
        refit = Weights(trained.intents, trained.bias, trained.by_feature, temperature)
        held = [one for one, at in zip(judged, fold_of, strict=True) if at == fold]
        shares.append((share(held, lambda one: one.strict), share(held, lambda one: one.either)))
        for one in held:
            confidence = one.answer.confidence
            if one.answer.source == "model":
                confidence = probabilities(evidence_of(one.case.step).features, refit)[0][1]
            pairs.append((confidence, one.strict))
    print(f"\n{FOLDS}-fold cross-validation by source, temperature refitted without the fold")
    print(
        "  strict per fold     "
        + "  ".join(f"{strict:.3f}" for strict, _ in shares)
        + f"   mean {statistics.fmean(s for s, _ in shares):.3f}"
    )
    print(
        "  or second per fold  "
        + "  ".join(f"{either:.3f}" for _, either in shares)
        + f"   mean {statistics.fmean(e for _, e in shares):.3f}"
    )
    print(f"  expected calibration error {calibration_error(pairs):.3f}")
    print(f"  temperature over all cases {fitted_temperature(cases, trained):.1f}, shipped {trained.temperature:.1f}")


def print_times(cases: Sequence[Case]) -> None:
    """Wall time of one classification in this process."""
    rules_ms, all_ms = [], []
    for case in cases:
        begun = time.perf_counter()
        classify_by_rules(evidence_of(case.step), THRESHOLD)
        rules_ms.append((time.perf_counter() - begun) * 1e3)
        begun = time.perf_counter()
        classify(case.step)
        all_ms.append((time.perf_counter() - begun) * 1e3)
    for name, times in (("evidence and rules", rules_ms), ("with the model", all_ms)):
        cuts = statistics.quantiles(times, n=100)
        print(f"{name:20} p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms, most {max(times):.2f} ms")


def main() -> None:
    """Print everything."""
    cases, name = load_cases()
    print(f"Evaluated on {name}: {len(cases)} cases\n")
    judged = judge(cases)
    print_shares(judged)
    print_confusion(judged)
    print_reliability(judged)
    print_cross_validation(judged)
    print()
    print_times(cases)


if __name__ == "__main__":
    main()
