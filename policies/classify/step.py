"""The values that the classifier takes and gives."""

from __future__ import annotations

from policies.intents import Intent
from policies.values import value_class


@value_class
class StepText:
    """What a classifier may look at: the step's own words, never who pays for it.

    `tools` are names; `response_format` is "json_object" or the schema as compact JSON.
    """

    step: str | None
    workflow: str | None
    system: str | None
    prompt: str
    tools: tuple[str, ...] = ()
    response_format: str | None = None


@value_class
class Alternative:
    """Another intent that the same evidence allows, with its own probability (0 to 1)."""

    intent: Intent
    confidence: float


@value_class
class Classification:
    """An answer. `confidence` is the calibrated chance (0 to 1) that a careful reader gives the step this label.

    `source` is one of header, declared, cache, rules, model, llm, fallback. `reasoning` is one line for people and never
    quotes the prompt's data. `alternatives` fall in confidence and leave out the intent itself.
    """

    intent: Intent
    confidence: float
    source: str
    reasoning: str
    alternatives: tuple[Alternative, ...] = ()
