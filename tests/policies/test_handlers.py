"""Handlers: the ten defaults, splitting tokens, assessing answers, and handlers of other packages."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from policies.answer_checks import Answer
from policies.errors import IntentClassificationError
from policies.handlers import ENTRY_POINT_GROUP, HANDLERS, Assessment, Handler, Registry, registry_of
from policies.intents import Intent
from policies.routing import Tier
from policies.settings import COMPRESSION_STRATEGIES, Settings

MINIMUM = Settings.from_values().quality_score_minimum
EXTRACT, SUMMARIZE = HANDLERS[Intent.EXTRACT], HANDLERS[Intent.SUMMARIZE]
MINE = replace(EXTRACT, output_tokens_min=1)


def test_every_intent_has_a_handler_with_known_strategies() -> None:
    assert set(HANDLERS) == set(Intent)
    for intent, handler in HANDLERS.items():
        assert handler.intent == intent
        assert set(handler.compression) <= set(COMPRESSION_STRATEGIES)
        assert handler.checks


def test_handler_defaults_of_strategy_output_tokens_and_tier_floor() -> None:
    assert SUMMARIZE.compression[0] == "extractive"
    assert EXTRACT.output_tokens_expected(1000) == 200
    assert HANDLERS[Intent.GENERATE].output_tokens_expected(2500) == 1500
    assert HANDLERS[Intent.CONDITIONAL].output_tokens_expected(300) == 15
    assert {handler.tier_floor for handler in HANDLERS.values()} == {Tier.FAST}


def test_configured_strategy_replaces_the_handlers_order() -> None:
    assert EXTRACT.strategies("structural", is_set=False) == ("structural", "extractive")
    assert EXTRACT.strategies("none", is_set=True) == ("none",)


@pytest.mark.parametrize("compression", [(), ("squeeze",), ("structural", "squeeze")])
def test_missing_or_unknown_compression_strategy_is_refused(compression: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="compression names at least one of none, structural"):
        Handler(Intent.SEND, 50, 0, compression)


@pytest.mark.parametrize(("share", "least"), [(-1, 0), (101, 0), (50, -1)])
def test_prompt_share_or_output_minimum_out_of_range_is_refused(share: int, least: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        Handler(Intent.SEND, share, least, ("none",))


@pytest.mark.parametrize(
    ("intent", "answer", "passes"),
    [
        ("extract", Answer('{"a": 1}', schema={"type": "object", "required": ["a"]}), True),
        ("extract", Answer('{"b": 1}', schema={"type": "object", "required": ["a"]}), False),
        ("extract", Answer("Here is the JSON:", wants_json=True), False),
        ("extract", Answer("2026-11-22 is the date", source="on the 22nd of November"), True),
        ("summarize", Answer("s" * 900, source="t" * 800), False),
        ("summarize", Answer("s" * 90, source="t" * 800), True),
        ("summarize", Answer("s" * 90, finish_reason="length", source="t" * 800), False),
        ("validate", Answer('{"verdict": "pass"}', wants_json=True), True),
        ("validate", Answer("Hm.", wants_json=False), False),
        ("conditional", Answer("billing", choices=("billing", "support")), True),
        ("conditional", Answer("other", choices=("billing", "support")), False),
        ("filter", Answer("[]", source="a b c", wants_json=True), True),
        ("filter", Answer("[2, 5]", source="apple, pear"), True),
        ("generate", Answer("Once upon a time"), True),
        ("generate", Answer(""), False),
        ("send", Answer("", is_tool_call=True), True),
        ("transform", Answer("{", wants_json=True), False),
        ("aggregate", Answer("3 of a kind"), True),
        ("enrich", Answer(""), False),
    ],
)
def test_answer_passes_or_fails_at_the_default_quality_minimum(intent: str, answer: Answer, passes: bool) -> None:
    assessment = Registry().of(intent).assess(answer)
    assert (assessment.score >= MINIMUM) is passes
    assert 0 <= assessment.score <= 1
    assert bool(assessment.faults) or passes


def test_handler_without_checks_passes_every_answer() -> None:
    assert replace(EXTRACT, checks=()).assess(Answer("")) == Assessment(1.0, ())


def test_unknown_intent_has_no_handler() -> None:
    with pytest.raises(IntentClassificationError):
        Registry().of("ponder")


# --- other packages ---


@dataclass(frozen=True)
class FakeEntryPoint:
    """As an installed package's entry point."""

    name: str
    loads: Any
    value: str = ""

    def load(self) -> Any:
        if isinstance(self.loads, Exception):
            raise self.loads
        return self.loads


def test_entry_point_may_be_a_handler_or_a_factory() -> None:
    summarize = replace(SUMMARIZE, prompt_share_percent=50)
    registry = registry_of([FakeEntryPoint("extract", MINE), FakeEntryPoint("summarize", lambda: summarize)])
    assert registry.of("extract") is MINE
    assert registry.of("summarize") is summarize
    assert registry.of("send") is HANDLERS[Intent.SEND]
    assert registry.faults == ()


@pytest.mark.parametrize(
    ("name", "loads", "words"),
    [
        ("extract", ImportError("no module named x"), "cannot be loaded: ImportError: no module named x"),
        ("extract", 3, "cannot be loaded: TypeError"),
        ("extract", dict, "gives dict, not a Handler"),
        ("send", MINE, "is for extract"),
        ("ponder", MINE, "must be named like its intent"),
    ],
)
def test_broken_entry_point_is_ignored_and_reported(name: str, loads: object, words: str) -> None:
    registry = registry_of([FakeEntryPoint(name, loads)])
    assert registry.handlers == HANDLERS
    assert len(registry.faults) == 1
    assert words in registry.faults[0]


def test_first_entry_point_by_value_wins_for_an_intent() -> None:
    other = replace(EXTRACT, output_tokens_min=2)
    for order in (1, -1):
        registry = registry_of(
            [FakeEntryPoint("extract", MINE, "a:x"), FakeEntryPoint("extract", other, "b:x")][::order]
        )
        assert registry.of("extract") is MINE
        assert "another package" in registry.faults[0]


def test_handler_is_loaded_from_the_entry_points_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fareboxtestplugin.py").write_text(
        "from dataclasses import replace\n"
        "from policies.handlers import HANDLERS\n"
        "handler = replace(HANDLERS['extract'], output_tokens_min=7)\n",
        encoding="utf-8",
    )
    info = tmp_path / "fareboxtestplugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fareboxtestplugin\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\nextract = fareboxtestplugin:handler\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        registry = registry_of(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
    finally:
        sys.modules.pop("fareboxtestplugin", None)
    assert registry.of("extract").output_tokens_min == 7
    assert registry.faults == ()
