"""Routing: tiers by score, the choice within a tier, abilities, stickiness, escalation, cheaper models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bench.eval_routing import by_router, cost, load
from policies.pricing import Price, price_from_map
from policies.routing import (
    AUDIO,
    JSON_SCHEMA,
    PDF,
    TIERS,
    TOOLS,
    VISION,
    Candidate,
    Needs,
    NoRoute,
    Route,
    RouteRequest,
    Tier,
    cheaper,
    estimated_prompt_tokens,
    is_auto,
    needed_abilities,
    next_tier_up,
    route,
    tier_for,
)
from policies.settings import Settings

OFF = Settings.from_values()
ON = replace(OFF, ais_routing_enabled=True)
ALL = frozenset({TOOLS, VISION, JSON_SCHEMA})


def price(usd_per_mtok: float) -> Price:
    parsed = price_from_map({"input_cost_per_token": usd_per_mtok / 1e6, "output_cost_per_token": usd_per_mtok / 1e6})
    assert parsed is not None
    return parsed


MINI = Candidate("mini", Tier.FAST, frozenset({TOOLS, JSON_SCHEMA}), frozenset({VISION}), 8000, 4000, price(0.1))
NANO = Candidate("nano", Tier.FAST, frozenset(), ALL, 4000, 1000, price(0.05), order=1)
MID = Candidate("mid", Tier.BALANCED, ALL, frozenset(), 128_000, 16_000, price(1), quality=6)
MID_DEAR = Candidate("mid-dear", Tier.BALANCED, ALL, frozenset(), 128_000, 16_000, price(2), quality=6.5, order=1)
BIG = Candidate("big", Tier.POWERFUL, ALL, frozenset(), 1_000_000, 64_000, price(10), quality=9)
FLEET = (MINI, NANO, MID, MID_DEAR, BIG)


def routed(route_request: RouteRequest, fleet: tuple[Candidate, ...] = FLEET, settings: Settings = ON) -> Route:
    chosen = route(route_request, fleet, settings)
    assert isinstance(chosen, Route), chosen
    return chosen


@pytest.mark.parametrize(
    ("score", "tier"),
    [(0, "fast"), (2.99, "fast"), (3.0, "balanced"), (6.49, "balanced"), (6.5, "powerful"), (10, "powerful")],
)
def test_score_selects_its_tier_by_the_default_thresholds(score: float, tier: str) -> None:
    assert tier_for(score, OFF) == tier


@pytest.mark.parametrize(
    ("fast", "balanced", "powerful", "quality", "score", "tier"),
    [
        (3, 6.5, 8, 0.6, 7, "balanced"),
        (3, 6.5, 5, 0.6, 5.5, "powerful"),
        (3, 6.5, 5, 0.3, 5.5, "balanced"),
        (3, 6.5, 5, 0.3, 6.5, "powerful"),
        (9, 6.5, 6.5, 0.6, 8, "fast"),
    ],
)
def test_tier_where_thresholds_leave_a_gap_or_overlap(
    fast: float, balanced: float, powerful: float, quality: float, score: float, tier: str
) -> None:
    moved = replace(
        OFF,
        ais_fast_tier_max_score=fast,
        ais_balanced_tier_max_score=balanced,
        ais_powerful_tier_min_score=powerful,
        ais_quality_weight=quality,
    )
    assert tier_for(score, moved) == tier


@pytest.mark.parametrize(
    ("model", "score", "expected", "words"),
    [
        ("auto", 1, "nano", "complexity 1.0 asks for fast; nano is the best of 2 by quality × 0.6 and price × 0.4"),
        ("auto", 5, "mid", "complexity 5.0 asks for balanced"),
        ("auto", 9, "big", "asks for powerful; big is the one that can take it"),
        ("auto:balanced", 1, "mid", "balanced was asked for"),
        ("auto:powerful", 1, "big", "powerful was asked for"),
    ],
)
def test_auto_model_is_routed_even_with_routing_off(model: str, score: float, expected: str, words: str) -> None:
    chosen = routed(RouteRequest(model, score), settings=OFF)
    assert chosen.model == expected
    assert chosen.is_changed
    assert words in chosen.reason


@pytest.mark.parametrize(("name", "auto"), [("auto", True), ("auto:fast", True), ("autobot", False), ("gpt", False)])
def test_is_auto_recognises_auto_with_and_without_a_tier(name: str, auto: bool) -> None:
    assert is_auto(name) is auto


def test_auto_with_an_unknown_tier_has_no_route() -> None:
    outcome = route(RouteRequest("auto:cheap", 1), FLEET, ON)
    assert isinstance(outcome, NoRoute)
    assert "auto:fast, auto:balanced, auto:powerful" in outcome.reason


@pytest.mark.parametrize(
    ("may_reroute", "settings", "model", "words"),
    [
        (False, ON, "big", "rerouting is not allowed here"),
        (True, OFF, "big", "routing is off"),
        (True, ON, "nano", "asks for fast"),
    ],
)
def test_named_model_is_rerouted_only_if_allowed_and_routing_is_on(
    may_reroute: bool, settings: Settings, model: str, words: str
) -> None:
    chosen = routed(RouteRequest("big", 1, may_reroute=may_reroute), settings=settings)
    assert (chosen.model, chosen.is_changed) == (model, model != "big")
    assert words in chosen.reason


def test_named_model_without_a_tier_is_kept() -> None:
    chosen = routed(RouteRequest("unheard-of", 1, may_reroute=True))
    assert (chosen.model, chosen.tier, chosen.is_changed) == ("unheard-of", None, False)


@pytest.mark.parametrize(("quality", "cost", "model"), [(0.6, 0.4, "mid"), (1.0, 0.0, "mid-dear"), (0.0, 1.0, "mid")])
def test_quality_and_cost_weights_choose_within_a_tier(quality: float, cost: float, model: str) -> None:
    weighed = replace(ON, ais_quality_weight=quality, ais_cost_weight=cost)
    assert routed(RouteRequest("auto", 5), settings=weighed).model == model


def test_ties_are_broken_by_order_then_by_name() -> None:
    twins = tuple(Candidate(name, Tier.FAST, order=order) for name, order in (("b", 1), ("c", 0), ("a", 1)))
    assert routed(RouteRequest("auto", 1), twins).model == "c"
    assert routed(RouteRequest("auto", 1), (twins[0], twins[2])).model == "a"


@pytest.mark.parametrize(
    ("needs", "model", "words"),
    [
        (Needs(frozenset({TOOLS})), "mini", "mini is the one that can take it"),
        (Needs(frozenset({VISION})), "mid", "none of fast can take this call, so balanced"),
        (Needs(prompt_tokens=4001), "mini", ""),
        (Needs(prompt_tokens=9000), "mid", "none of fast"),
        (Needs(prompt_tokens=200_000), "big", "none of fast can take this call, so powerful"),
        (Needs(output_tokens=2000), "mini", ""),
    ],
)
def test_only_models_that_meet_the_needs_are_chosen(needs: Needs, model: str, words: str) -> None:
    chosen = routed(RouteRequest("auto", 1, needs))
    assert chosen.model == model
    assert words in chosen.reason


def test_lower_tier_is_used_if_no_higher_one_can_take_the_call() -> None:
    assert routed(RouteRequest("auto:powerful", 9), (MINI, MID)).model == "mid"


@pytest.mark.parametrize(
    ("fleet", "needs", "words"),
    [
        ((), Needs(), "no model is in a tier"),
        ((MINI,), Needs(frozenset({VISION})), "images"),
        ((MINI,), Needs(prompt_tokens=9000), "9000 prompt tokens"),
        ((Candidate("x", Tier.FAST),), Needs(is_money_limited=True), "a known price"),
    ],
)
def test_no_route_names_the_need_that_no_model_meets(fleet: tuple[Candidate, ...], needs: Needs, words: str) -> None:
    outcome = route(RouteRequest("auto", 1, needs), fleet, ON)
    assert isinstance(outcome, NoRoute)
    assert words in outcome.reason


def test_model_with_unstated_abilities_is_used_only_if_none_states_them() -> None:
    silent, stated = Candidate("silent", Tier.FAST), Candidate("stated", Tier.FAST, ALL, order=1)
    needs = Needs(frozenset({TOOLS}))
    assert routed(RouteRequest("auto", 1, needs), (silent, stated)).model == "stated"
    assert routed(RouteRequest("auto", 1, needs), (silent,)).model == "silent"
    stays = routed(RouteRequest("named", 1, needs, may_reroute=True), (silent, Candidate("named", Tier.POWERFUL)))
    assert (stays.model, stays.is_changed) == ("named", False)


def test_unpriced_model_is_excluded_where_money_is_limited() -> None:
    unpriced = Candidate("local", Tier.FAST, ALL, quality=10)
    assert routed(RouteRequest("auto", 1), (unpriced, MINI)).model == "mini"
    assert routed(RouteRequest("auto", 1), (unpriced, MINI), replace(ON, ais_cost_weight=0.0)).model == "local"
    assert routed(RouteRequest("auto", 1, Needs(is_money_limited=True)), (unpriced, MINI)).model == "mini"


def test_free_model_is_the_cheapest() -> None:
    free = Candidate("local", Tier.FAST, price=price(0))
    assert routed(RouteRequest("auto", 1), (MINI, free)).model == "local"


@pytest.mark.parametrize(
    ("route_request", "model"),
    [
        (RouteRequest("auto", 1, sticky_model="big"), "big"),
        (RouteRequest("auto", 9, sticky_model="mini"), "mini"),
        (RouteRequest("auto:fast", 1, sticky_model="big"), "nano"),
        (RouteRequest("auto", 1, Needs(frozenset({VISION})), sticky_model="mini"), "mid"),
        (RouteRequest("auto", 1, sticky_model="gone"), "nano"),
        (RouteRequest("mid", 1, sticky_model="big", may_reroute=True), "big"),
        (RouteRequest("mid", 1, sticky_model="big"), "mid"),
        (RouteRequest("auto", 1, sticky_model="mini", failed_attempts=1, failed_tier=Tier.FAST), "mid"),
    ],
)
def test_sticky_model_is_kept_while_it_can_take_the_call(route_request: RouteRequest, model: str) -> None:
    assert routed(route_request).model == model


@pytest.mark.parametrize(
    ("attempts", "failed", "model", "words"),
    [
        (1, Tier.FAST, "mid", "the last answer, from fast, failed its checks"),
        (2, Tier.BALANCED, "big", "from balanced"),
        (2, Tier.POWERFUL, "big", "no tier is above powerful"),
        (3, Tier.BALANCED, "mid", "no more attempts move up"),
        (1, None, "mid", "from fast"),
    ],
)
def test_failed_answer_moves_the_next_attempt_one_tier_up(
    attempts: int, failed: Tier | None, model: str, words: str
) -> None:
    chosen = routed(RouteRequest("auto", 1, failed_attempts=attempts, failed_tier=failed))
    assert chosen.model == model
    assert words in chosen.reason


def test_zero_retry_attempts_prevent_moving_up_a_tier() -> None:
    never = replace(ON, max_retry_attempts=0)
    route_request = RouteRequest("auto", 1, failed_attempts=1, failed_tier=Tier.FAST)
    assert routed(route_request, settings=never).tier is Tier.FAST
    assert [next_tier_up(tier) for tier in TIERS] == [Tier.BALANCED, Tier.POWERFUL, Tier.POWERFUL]


def test_tier_floor_raises_only_lower_tiers() -> None:
    chosen = routed(RouteRequest("auto", 1, tier_floor=Tier.BALANCED))
    assert (chosen.tier, "takes balanced at least" in chosen.reason) == (Tier.BALANCED, True)
    assert routed(RouteRequest("auto", 9, tier_floor=Tier.BALANCED)).tier is Tier.POWERFUL


def test_cheaper_models_are_listed_from_the_nearest_tier_down() -> None:
    assert [candidate.model for candidate in cheaper("big", Needs(), FLEET, ON)] == ["mid-dear", "mid", "mini", "nano"]
    assert [candidate.model for candidate in cheaper("mid-dear", Needs(frozenset({TOOLS})), FLEET, ON)] == [
        "mid",
        "mini",
    ]
    assert cheaper("nano", Needs(), FLEET, ON) == ()
    assert cheaper("unheard-of", Needs(), FLEET, ON) == ()
    assert "mid-dear costs 20 % of big" in cheaper("big", Needs(), FLEET, ON)[0].reason


def test_model_with_unknown_abilities_or_price_is_not_offered_as_cheaper() -> None:
    silent = Candidate("silent", Tier.FAST, price=price(0.01))
    unpriced = Candidate("unpriced", Tier.FAST, ALL)
    assert cheaper("big", Needs(frozenset({TOOLS})), (BIG, silent, unpriced), ON) == ()


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        ({}, set()),
        ({"messages": [{"role": "user", "content": "hello"}]}, set()),
        ({"tools": [{"type": "function"}]}, {TOOLS}),
        ({"tools": []}, set()),
        ({"functions": [{}]}, {TOOLS}),
        ({"messages": [{"content": [{"type": "text"}, {"type": "image_url"}]}]}, {VISION}),
        ({"messages": [{"content": [{"type": "image", "source": {}}]}]}, {VISION}),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, {VISION}),
        ({"messages": [{"content": [{"type": "input_audio"}]}]}, {AUDIO}),
        ({"response_format": {"type": "json_schema"}}, {JSON_SCHEMA}),
        ({"response_format": {"type": "json_object"}}, set()),
        ({"text": {"format": {"type": "json_schema"}}}, {JSON_SCHEMA}),
        ({"messages": "no list", "input": [None, "x", {"content": [None, 1]}], "text": 3}, set()),
        ({"messages": [{"content": [{"type": ["odd"]}]}]}, set()),
        # The model reads the results of tools; the input of a past tool call is not checked for media.
        ({"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]}, {VISION}),
        ({"messages": [{"content": [{"type": "tool_use", "input": {"content": [{"type": "image"}]}}]}]}, set()),
        ({"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]}, {VISION}),
        ({"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot"}}]}, {VISION}),
        ({"messages": [{"content": [{"type": "file", "file": {}}]}]}, {PDF}),
        ({"messages": [{"content": [{"type": "document", "source": {"type": "base64"}}]}]}, {PDF}),
        ({"messages": [{"content": [{"type": "document", "source": {"type": "text"}}]}]}, set()),
        ({"output_config": {"format": {"type": "json_schema"}}}, {JSON_SCHEMA}),
    ],
)
def test_needed_abilities_of_a_request(body: Mapping[str, Any], needed: set[str]) -> None:
    assert needed_abilities(body) == needed


LONG = "word " * 600


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": LONG}]},
        {"messages": [{"content": [{"type": "text", "text": LONG}]}]},
        {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "text", "text": LONG}]}]}]},
        {"messages": [{"content": [{"type": "tool_use", "input": {"file": LONG}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "write", "arguments": LONG}}]}]},
        {"messages": [{"content": [{"type": "document", "source": {"type": "text", "data": LONG}}]}]},
        {"input": LONG},
        {"input": [{"type": "function_call_output", "output": LONG}]},
        {"instructions": LONG},
        {"system": [{"type": "text", "text": LONG}]},
        {"prompt": [LONG]},
        {"tools": [{"function": {"description": LONG}}]},
    ],
)
def test_estimated_prompt_tokens_include_every_text(body: Mapping[str, Any]) -> None:
    assert 1000 <= estimated_prompt_tokens(body) <= 1010


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": LONG}},
        {"type": "image", "source": {"type": "base64", "data": LONG}},
        {"type": "document", "source": {"type": "base64", "data": LONG}},
        {"type": "input_audio", "input_audio": {"data": LONG}},
        {"type": "file", "file": {"file_data": LONG}},
    ],
)
def test_estimated_prompt_tokens_exclude_binary_content(part: Mapping[str, Any]) -> None:
    assert estimated_prompt_tokens({"messages": [{"role": "user", "content": [part]}]}) < 10


abilities = st.frozensets(st.sampled_from(sorted(ALL)))
fleets = st.lists(
    st.builds(
        Candidate,
        st.text("abcd", min_size=1, max_size=3),
        st.sampled_from(TIERS),
        abilities,
        prompt_tokens_max=st.none() | st.integers(1, 10_000),
        price=st.none() | st.builds(price, st.floats(0, 50)),
        quality=st.none() | st.floats(0, 10),
    ),
    max_size=6,
    unique_by=lambda candidate: candidate.name,
)
route_requests = st.builds(
    RouteRequest,
    st.sampled_from(["auto", "auto:fast", "auto:powerful", "a", "b"]),
    st.floats(0, 10),
    st.builds(Needs, abilities, st.integers(0, 10_000), is_money_limited=st.booleans()),
    may_reroute=st.booleans(),
    sticky_model=st.none() | st.sampled_from(["a", "b"]),
    failed_attempts=st.integers(0, 4),
    failed_tier=st.none() | st.sampled_from(TIERS),
)


@hypothesis_settings(deadline=None)  # the machine may be busy
@given(route_requests, fleets)
def test_any_chosen_model_meets_the_needs_and_states_a_reason(
    route_request: RouteRequest, fleet: list[Candidate]
) -> None:
    outcome = route(route_request, fleet, ON)
    assert outcome.reason.endswith(".")
    assert outcome == route(route_request, fleet[::-1], ON)
    if isinstance(outcome, Route) and outcome.is_changed:
        chosen = next(candidate for candidate in fleet if candidate.name == outcome.model)
        assert chosen.prompt_tokens_max is None or chosen.prompt_tokens_max >= route_request.needs.prompt_tokens
        assert chosen.price is not None or not route_request.needs.is_money_limited
        assert outcome.tier is chosen.tier
        assert is_auto(route_request.model) or route_request.may_reroute


def test_router_agrees_with_the_labels_of_the_evaluation() -> None:
    """As docs/routing.md states, with some tolerance: a changed curve must not silently break the tiers."""
    cases = load()
    steps = [TIERS.index(by_router(case)) - TIERS.index(case.tier) for case in cases]
    assert steps.count(0) >= 0.85 * len(cases)
    assert sum(step > 0 for step in steps) <= 0.05 * len(cases)
    assert max(map(abs, steps)) == 1
    assert sum(cost(case, by_router(case)) for case in cases) < sum(cost(case, Tier.POWERFUL) for case in cases) * 0.7
