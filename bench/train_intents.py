"""Train the intent model on `bench/intents/train.jsonl` and write `policies/classify/weights.json`.

    python -m bench.train_intents [--temperature 1.0]

Deterministic: the same sentences give the same weights. `bench/eval_intents.py` finds the temperature, on data that
this training does not see; without the option, the current one is kept.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from policies.classify.features import evidence_of
from policies.classify.step import StepText

SENTENCES = Path(__file__).parent / "intents" / "train.jsonl"
WEIGHTS = Path(__file__).parent.parent / "policies" / "classify" / "weights.json"
# A feature that occurs in fewer steps is only the author's phrasing.
STEPS_MIN = 3
# A step that a person wrote teaches more than one from a template.
WRITTEN_WEIGHT = 4.0
# Each step is also used without its name, at half the weight: names are missing or misleading so often that the model
# must be able to rely on the text.
NAMELESS_WEIGHT = 0.5
REGULARIZATION = 0.5
# Features whose weights move no score by a twentieth are dropped.
WEIGHT_MIN = 0.05


def step_text(row: dict[str, Any]) -> StepText:
    """The classifier's view of a stored sentence."""
    return StepText(row["step"], None, row["system"], row["prompt"], tuple(row["tools"]), row["response_format"])


def learned(features: dict[str, float]) -> dict[str, float]:
    """The features that the model weighs; those that begin with "~" only describe the form of a step."""
    return {name: value for name, value in features.items() if not name.startswith("~")}


def train(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit on these sentences and return the content of the weights file, with temperature 1."""
    feature_rows, labels, importance = [], [], []
    for row in rows:
        step = step_text(row)
        weight = WRITTEN_WEIGHT if row["origin"] == "written" else 1.0
        shown = [(step, weight)]
        if step.step and (step.prompt or step.system):
            shown.append((replace(step, step=None), weight * NAMELESS_WEIGHT))
        for version, counted in shown:
            feature_rows.append(learned(dict(evidence_of(version).features)))
            labels.append(row["label"])
            importance.append(counted)
    counts = Counter(name for features in feature_rows for name in features)
    frequent_rows = [
        {name: value for name, value in features.items() if counts[name] >= STEPS_MIN} for features in feature_rows
    ]
    vectorizer = DictVectorizer()
    matrix = vectorizer.fit_transform(frequent_rows)
    model = LogisticRegression(C=REGULARIZATION, max_iter=1000).fit(
        matrix, np.array(labels), sample_weight=np.array(importance)
    )
    weights = {
        name: [round(100 * float(weight)) for weight in row]
        for name, row in sorted(zip(vectorizer.feature_names_, model.coef_.T, strict=True))
        if max(abs(row)) >= WEIGHT_MIN
    }
    bias = [round(float(value), 3) for value in model.intercept_]
    return {"intents": [str(name) for name in model.classes_], "bias": bias, "temperature": 1.0, "weights": weights}


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--temperature", type=float)
    asked = parser.parse_args().temperature
    rows = [json.loads(line) for line in SENTENCES.read_text("utf-8").splitlines()]
    trained = train(rows)
    present = json.loads(WEIGHTS.read_text("utf-8"))["temperature"] if WEIGHTS.exists() else 1.0
    trained["temperature"] = present if asked is None else asked
    text = json.dumps(trained, ensure_ascii=False, separators=(",", ":")).replace("],", "],\n")
    WEIGHTS.write_text(text + "\n", "utf-8")
    print(
        f"{len(rows)} sentences, {len(trained['weights'])} features, {len(text) // 1024} KiB, temperature {trained['temperature']}"
    )


if __name__ == "__main__":
    main()
