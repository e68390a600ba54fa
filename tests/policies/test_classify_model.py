"""The shipped data: lexicon, weights, training sentences; and the accuracy of the classifier."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from policies.classify import StepText, classify
from policies.classify.lexicon import lexicon
from policies.classify.model import Weights, probabilities, weights
from policies.classify.rules import PAIR_CONFIDENCES
from policies.intents import Intent

ROOT = Path(__file__).parent.parent.parent
SENTENCES = ROOT / "bench" / "intents"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_weights_cover_the_ten_intents() -> None:
    trained = weights()
    assert sorted(trained.intents) == sorted(Intent)
    assert len(trained.bias) == 10
    assert trained.temperature > 0
    assert all(len(row) == 10 for row in trained.by_feature.values())


def test_weights_load_in_less_than_300_ms() -> None:
    weights.cache_clear()
    started = time.perf_counter()
    weights()
    # 30 ms is the aim and 6 ms were measured; the factor is for a loaded machine.
    assert time.perf_counter() - started < 0.3


def test_probabilities_sum_to_one_and_descend() -> None:
    ranked = probabilities({"a1:extract": 1.0, "unknown": 5.0}, weights())
    assert sum(chance for _, chance in ranked) == pytest.approx(1.0)
    assert [chance for _, chance in ranked] == sorted((chance for _, chance in ranked), reverse=True)
    assert {intent for intent, _ in ranked} == set(Intent)


def test_higher_temperature_flattens_probabilities_without_reordering() -> None:
    cold, warm = (Weights(tuple(Intent), (0.0,) * 10, {"x": tuple(range(10))}, t) for t in (0.5, 5.0))
    assert [i for i, _ in probabilities({"x": 9.0}, cold)] == [i for i, _ in probabilities({"x": 9.0}, warm)]
    assert probabilities({"x": 9.0}, cold)[0][1] > probabilities({"x": 9.0}, warm)[0][1]


def test_extreme_scores_do_not_overflow() -> None:
    trained = Weights(tuple(Intent), (0.0,) * 10, {"x": (10**9, *[-(10**9)] * 9)}, 1.0)
    assert probabilities({"x": 1e6}, trained)[0][1] == pytest.approx(1.0)


def test_every_lexicon_word_maps_to_an_intent() -> None:
    words = lexicon()
    for table in (words.nominals, words.agents, words.objects, words.tools):
        assert set(table.values()) <= set(Intent)
    assert {intent for meanings in words.verbs.values() for intent, _ in meanings} <= set(Intent)
    assert {intent for _, intent in words.cjk} <= set(Intent)


def test_every_lexicon_phrase_maps_to_a_verb_or_a_feature() -> None:
    words = lexicon()
    own = {"check_if", "decide_if", "check_for", "send_target"}
    assert {verb for verb in words.phrases.values() if verb not in words.verbs} <= own


def test_no_rule_has_a_confidence_above_0_9() -> None:
    assert max(PAIR_CONFIDENCES.values()) <= 0.9


def test_training_set_is_large_and_disjoint_from_the_held_out_set() -> None:
    train, held = read_lines(SENTENCES / "train.jsonl"), read_lines(SENTENCES / "heldout.jsonl")
    assert len(train) >= 1_500
    assert {row["label"] for row in train} == {row["label"] for row in held} == set(Intent)
    assert not {row["id"] for row in train} & {row["id"] for row in held}


def test_accuracy_on_held_out_sentences_is_at_least_82_percent() -> None:
    held = read_lines(SENTENCES / "heldout.jsonl")
    right = [
        classify(
            StepText(row["step"], None, row["system"], row["prompt"], tuple(row["tools"]), row["response_format"])
        ).intent
        == row["label"]
        for row in held
    ]
    assert sum(right) / len(right) >= 0.82


def test_accuracy_on_reference_steps_is_at_least_72_percent() -> None:
    path = Path(os.environ.get("FAREBOX_REFERENCE") or ROOT.parent / "shared" / "reference") / "intents" / "dev.jsonl"
    if not path.is_file():
        pytest.skip("intents/dev.jsonl is lacking: set FAREBOX_REFERENCE to the folder of the reference data")
    right, either = 0, 0
    rows = read_lines(path)
    for row in rows:
        schema = row.get("schema")
        shape = (schema if isinstance(schema, str) else json.dumps(schema)) if schema else row["response_format"]
        answer = classify(
            StepText(
                row["step_name"], row["workflow"], row["system"], row["prompt"] or "", tuple(row["tools"] or ()), shape
            )
        )
        right += answer.intent == row["label"]
        either += answer.intent in (row["label"], row["second_label"])
    assert right / len(rows) >= 0.72
    assert either / len(rows) >= 0.83
