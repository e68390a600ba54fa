"""The classifier's input and output values."""

from __future__ import annotations

from policies.intents import Intent
from policies.values import value_class


@value_class
class StepText:
    """The input of the classifier: the step's own words, without anything about its caller.

    `tools` are names; `response_format` is "json_object" or the schema as compact JSON.
    """

    step: str | None = None
    workflow: str | None = None
    system: str | None = None
    prompt: str = ""
    tools: tuple[str, ...] = ()
    response_format: str | None = None


@value_class
class Alternative:
    """Another intent that fits the same evidence, with its own probability (0 to 1)."""

    intent: Intent
    confidence: float


@value_class
class Classification:
    """The result. `confidence` is the calibrated probability (0 to 1) that a careful reader gives the step this label.

    `source` is header, declared, cache, rules, model, llm or fallback. `reasoning` is one line for people, which never quotes
    the prompt's data. `alternatives` are sorted by falling confidence, without the intent itself.
    """

    intent: Intent
    confidence: float
    source: str
    reasoning: str
    alternatives: tuple[Alternative, ...] = ()
