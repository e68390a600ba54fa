"""The ten intents and the tree of errors."""

from __future__ import annotations

import pytest

from policies.errors import (
    BudgetExceededError,
    CompressionError,
    IntentClassificationError,
    OrchestrationError,
    RoutingError,
)
from policies.intents import DEFINITIONS, Intent, parse_intent


def test_ten_intents_are_named_as_in_the_settings() -> None:
    assert " ".join(Intent) == "extract summarize generate validate send transform conditional aggregate filter enrich"


def test_every_intent_has_a_one_line_definition() -> None:
    assert set(DEFINITIONS) == set(Intent)
    assert all(text and "\n" not in text for text in DEFINITIONS.values())


@pytest.mark.parametrize("text", ["extract", " Extract ", "EXTRACT\n"])
def test_parse_intent_ignores_case_and_whitespace(text: str) -> None:
    assert parse_intent(text) is Intent.EXTRACT


@pytest.mark.parametrize("text", ["", "summary", "extract;", "none", "x" * 10_000])
def test_unknown_intent_is_refused_with_the_list_of_intents(text: str) -> None:
    with pytest.raises(IntentClassificationError, match="the ten are extract, summarize") as caught:
        parse_intent(text)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("error", [BudgetExceededError, IntentClassificationError, CompressionError, RoutingError])
def test_error_without_a_message_shows_its_docstring(error: type[OrchestrationError]) -> None:
    assert issubclass(error, OrchestrationError)
    assert str(error()) == error.__doc__
    assert str(error("why")) == "why"
