"""The quick rules: two independent pieces of evidence that agree, without a contradiction.

A word in a step's name alone is right seven times in ten, which is not enough to decide on. The name and the request together
are right nine times in ten; so are the name and the stated product. The request and the only tool come close.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from policies.classify.features import Evidence, Hint
from policies.classify.step import Alternative, Classification
from policies.intents import Intent

# How often each pair was right, per label, on the evaluation and held-out steps together (`make eval-intents`).
PAIR_CONFIDENCES: Mapping[frozenset[str], float] = MappingProxyType(
    {
        frozenset(("name", "ask")): 0.9,
        frozenset(("name", "product")): 0.9,
        frozenset(("name", "role")): 0.8,
        frozenset(("name", "later")): 0.85,
        frozenset(("ask", "tool")): 0.85,
        frozenset(("ask", "product")): 0.8,
        frozenset(("name", "tool")): 0.85,
    }
)


def classify_by_rules(evidence: Evidence, confidence_threshold: float) -> Classification | None:
    """The intent that the evidence agrees on; None if it does not agree, or its confidence is below the threshold."""
    kinds = _kinds_by_intent(evidence.hints)
    scored = {intent: _confidence(evidence_kinds) for intent, evidence_kinds in kinds.items()}
    sure = [intent for intent, confidence in scored.items() if confidence > 0]
    if len(sure) != 1 or _contradicted(sure[0], kinds):
        return None
    confidence = scored[sure[0]]
    if confidence < confidence_threshold:
        return None
    return Classification(
        intent=Intent(sure[0]),
        confidence=confidence,
        source="rules",
        reasoning=reasoning_for(evidence.hints, sure[0]),
        alternatives=_alternatives(kinds, sure[0], 1.0 - confidence),
    )


def reasoning_for(hints: tuple[Hint, ...], intent: str) -> str:
    """The evidence for an intent, in words."""
    reasons = list(dict.fromkeys(hint.reason for hint in hints if hint.intent == intent))
    return "; ".join(reasons[:3]) if reasons else "no single word says it; the wording as a whole does"


def _kinds_by_intent(hints: tuple[Hint, ...]) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for hint in hints:
        kinds.setdefault(hint.intent, set()).add(hint.kind)
    return kinds


def _confidence(kinds: set[str]) -> float:
    """The most trusted pair among these kinds of evidence; 0 without one."""
    return max((confidence for pair, confidence in PAIR_CONFIDENCES.items() if pair <= kinds), default=0.0)


def _contradicted(intent: str, kinds: dict[str, set[str]]) -> bool:
    """Whether the name or the first request also points to another intent."""
    return any(other != intent and other_kinds & {"name", "ask"} for other, other_kinds in kinds.items())


def _alternatives(kinds: dict[str, set[str]], intent: str, remaining_confidence: float) -> tuple[Alternative, ...]:
    others = [other for other in kinds if other != intent][:3]
    return tuple(Alternative(Intent(other), round(remaining_confidence / len(others), 3)) for other in others)
