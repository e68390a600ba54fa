"""The classification of a step: the order of the sources."""

from __future__ import annotations

from policies.classify.features import Evidence, evidence_of
from policies.classify.lexicon import lexicon
from policies.classify.model import probabilities, weights
from policies.classify.rules import classify_by_rules, reasoning_for
from policies.classify.step import Alternative, Classification, StepText
from policies.intents import Intent, parse_intent

# `generate` is the most frequent intent, with a good fifth of the evaluation steps; without evidence it is little more likely.
FALLBACK_CONFIDENCE = 0.3
# If no known word was found, the model decides alone only if it is at least this sure.
MODEL_ALONE_MIN = 0.5
# Alternatives less likely than this are noise.
ALTERNATIVE_MIN = 0.05
ALTERNATIVES_MAX = 3


def load_classifier() -> None:
    """Load the words and weights of the classifier, so that the first step does not wait some 20 ms for them."""
    lexicon()
    weights()


def classify(
    step: StepText, *, header: str | None = None, declared: Intent | None = None, confidence_threshold: float = 0.7
) -> Classification:
    """The intent of a step: from the header, else the declaration, else the rules, else the model, else `generate`.

    The rules answer only at or above `confidence_threshold` (0 to 1). The model answers whatever its confidence: below the
    threshold the caller may ask a language model (`llm_prompt`), and until then this is the best guess. Raises
    IntentClassificationError for a header that is not one of the ten. Takes constant time: of long texts, only parts of
    fixed size are read.
    """
    if header is not None:
        return Classification(parse_intent(header), 1.0, "header", "the caller said it in the x-workflow-intent header")
    if declared is not None:
        return Classification(declared, 1.0, "declared", "the workflow's declaration says it")
    evidence = evidence_of(step)
    by_rules = classify_by_rules(evidence, confidence_threshold)
    if by_rules is not None:
        return by_rules
    by_model = classify_by_model(evidence)
    if evidence.is_empty and by_model.confidence < MODEL_ALONE_MIN:
        return Classification(
            Intent.GENERATE, FALLBACK_CONFIDENCE, "fallback", "nothing in the step speaks for any intent"
        )
    return by_model


def plan_takes_precedence(planned: str, classified: str) -> bool:
    """Whether a call's intent is that of its step in the run's plan, by the sources of the two.

    What the announcement of a run declares counts like a workflow's declaration. A prompt in it decides only if the call's own text
    says too little. Steps of past runs (`cache`) decide nothing.
    """
    if classified in ("header", "declared"):
        return False
    return planned == "declared" or (classified == "fallback" and planned in ("rules", "model", "llm"))


def classify_by_model(evidence: Evidence) -> Classification:
    """The model's most likely intent with its calibrated confidence."""
    (intent, confidence), *others = probabilities(evidence.features, weights())
    return Classification(
        intent=intent,
        confidence=round(confidence, 3),
        source="model",
        reasoning=reasoning_for(evidence.hints, intent),
        alternatives=tuple(
            Alternative(other, round(probability, 3))
            for other, probability in others[:ALTERNATIVES_MAX]
            if probability >= ALTERNATIVE_MIN
        ),
    )
