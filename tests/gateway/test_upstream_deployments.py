"""Choosing among the deployments of a name: cooldowns, retries and fallbacks."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from gateway.upstream.deployments import DeploymentPool, PoolSettings
from gateway.upstream.failures import is_context_window, retry_after_s
from gateway.upstream.model_list import deployments_of
from gateway.upstream.port import Deployment, UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.upstream.price_map import PriceMap, installed_price_map


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def deployment(name: str, position: int, weight: int = 1) -> Deployment:
    return Deployment(f"{name}/{position}", name, "openai", "x", "auto", {}, {}, weight)


def pool(clock: Clock, *weights: int, **settings: Any) -> DeploymentPool:
    entries = [deployment("m", i, weight) for i, weight in enumerate(weights)] + [deployment("only", 0)]
    return DeploymentPool(entries, PoolSettings(**settings), clock_s=clock, rng=random.Random(7))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def chosen(pool: DeploymentPool, name: str = "m", *exclude: str, include_cooling_down: bool = False) -> Deployment:
    deployment = pool.choose(name, exclude, include_cooling_down=include_cooling_down)
    assert deployment is not None
    return deployment


def test_load_is_shared_by_weight(clock: Clock) -> None:
    shared = pool(clock, 3, 1, 0)
    counted = Counter(chosen(shared).id for _ in range(2000))
    assert counted["m/2"] == 0
    assert 2.5 < counted["m/0"] / counted["m/1"] < 3.6


def test_all_zero_weights_are_equal(clock: Clock) -> None:
    shared = pool(clock, 0, 0)
    assert {chosen(shared).id for _ in range(50)} == {"m/0", "m/1"}


def test_least_busy_deployment_is_chosen(clock: Clock) -> None:
    shared = pool(clock, 1, 1, 1, routing_strategy="least-busy")
    for _ in range(3):
        shared.acquire(chosen(shared))
    assert [shared.in_flight(item) for item in shared.of("m")] == [1, 1, 1]
    shared.release(shared.of("m")[1])
    assert chosen(shared).id == "m/1"
    shared.acquire(shared.of("m")[1])
    shared.release(shared.of("m")[2])
    assert chosen(shared).id == "m/2"
    assert [shared.in_flight(item) for item in shared.of("m")] == [1, 1, 0]


def test_excluded_deployments_and_unknown_names_are_not_chosen(clock: Clock) -> None:
    shared = pool(clock, 1, 1)
    assert chosen(shared, "m", "m/0").id == "m/1"
    assert shared.choose("m", {"m/0", "m/1"}) is None
    assert shared.choose("unknown") is None
    assert shared.names == ("m", "only")


@pytest.mark.parametrize(("status", "fails"), [(500, 4), (503, 4), (502, 4), (504, 4), (408, 4), (401, 1), (404, 1)])
def test_failing_deployment_cools_down_for_5_s(clock: Clock, status: int, fails: int) -> None:
    shared = pool(clock, 1, 1)
    bad, good = shared.of("m")
    for _ in range(fails):
        assert not shared.is_cooling_down(bad)
        shared.report(bad, status)
    assert shared.is_cooling_down(bad)
    assert {chosen(shared).id for _ in range(20)} == {good.id}
    clock.now_s += 5.1
    assert {chosen(shared).id for _ in range(50)} == {bad.id, good.id}


@pytest.mark.parametrize("status", [400, 413, 422, 200])
def test_client_errors_do_not_cool_a_deployment_down(clock: Clock, status: int) -> None:
    shared = pool(clock, 1, 1)
    for _ in range(20):
        shared.report(shared.of("m")[0], status)
    assert not shared.is_cooling_down(shared.of("m")[0])


def test_failures_a_minute_apart_do_not_add_up(clock: Clock) -> None:
    shared = pool(clock, 1, 1)
    for _ in range(10):
        shared.report(shared.of("m")[0], 500)
        clock.now_s += 61
    assert not shared.is_cooling_down(shared.of("m")[0])


def test_success_resets_the_failure_count(clock: Clock) -> None:
    shared = pool(clock, 1, 1)
    for status in (500, 500, 500, 200, 500, 500, 500):
        shared.report(shared.of("m")[0], status)
    assert not shared.is_cooling_down(shared.of("m")[0])


@pytest.mark.parametrize(("requested_s", "rest_s"), [(None, 5.0), (1.0, 5.0), (30.0, 30.0), (1e9, 300.0)])
def test_retry_after_sets_the_cooldown_between_5_and_300_s(
    clock: Clock, requested_s: float | None, rest_s: float
) -> None:
    shared = pool(clock, 1, 1)
    shared.report(shared.of("m")[0], 429, retry_after_s=requested_s)
    clock.now_s += rest_s - 0.1
    assert shared.is_cooling_down(shared.of("m")[0])
    clock.now_s += 0.2
    assert not shared.is_cooling_down(shared.of("m")[0])


def test_only_deployment_of_a_name_never_cools_down(clock: Clock) -> None:
    shared = pool(clock)
    for status in (401, 429, 500, 500, 500, 500, 500):
        shared.report(shared.of("only")[0], status)
    assert chosen(shared, "only").id == "only/0"
    assert not shared.is_cooling_down(shared.of("only")[0])


def test_name_is_down_while_all_its_deployments_cool_down(clock: Clock) -> None:
    shared = pool(clock, 1, 1)
    for deployment in (*shared.of("m"), *shared.of("only")):
        assert not shared.is_down(deployment.name)
        shared.report(deployment, 429)
    assert (shared.is_down("m"), shared.is_down("only")) == (True, True)
    clock.now_s += 5.1
    assert (shared.is_down("m"), shared.is_down("only")) == (False, False)


def test_when_all_cool_down_the_first_to_recover_can_be_chosen(clock: Clock) -> None:
    shared = pool(clock, 1, 1)
    shared.report(shared.of("m")[0], 429, retry_after_s=60)
    shared.report(shared.of("m")[1], 429, retry_after_s=20)
    assert shared.choose("m") is None
    assert chosen(shared, include_cooling_down=True).id == "m/1"


@pytest.mark.parametrize(
    ("failure", "attempts", "others", "advice", "again"),
    [
        (500, 1, False, None, True),
        (529, 2, False, None, True),
        (500, 3, False, None, False),
        (429, 1, False, None, True),
        (429, 1, False, "false", False),
        (400, 1, False, "true", True),
        (408, 1, False, None, True),
        (400, 1, True, None, False),
        (401, 1, False, None, False),
        (401, 1, True, None, True),
        (404, 1, True, None, True),
        (UpstreamTimeout("x"), 1, False, None, True),
        (UpstreamUnreachable("x"), 2, False, None, True),
        (UpstreamUnreachable("x"), 3, False, None, False),
        (UpstreamBroken("x"), 1, False, None, True),
        (UpstreamBroken("x", bytes_received=True), 1, True, None, False),
    ],
)
def test_should_retry_depends_on_failure_attempts_alternatives_and_advice(
    clock: Clock, failure: int | UpstreamError, attempts: int, others: bool, advice: str | None, again: bool
) -> None:
    assert pool(clock).should_retry(failure, attempts, has_others=others, advice=advice) is again


@pytest.mark.parametrize("advice", [None, "true"])
def test_retry_after_above_8_s_is_left_to_the_client(clock: Clock, advice: str | None) -> None:
    """The client gets the provider's retry-after at once; other deployments are tried without a pause."""
    shared = pool(clock)
    assert shared.should_retry(429, 1, advice=advice, retry_after_s=8)
    assert not shared.should_retry(429, 1, advice=advice, retry_after_s=8.1)
    assert shared.should_retry(429, 1, advice=advice, retry_after_s=3600, has_others=True)


def test_wait_doubles_with_jitter_and_respects_retry_after(clock: Clock) -> None:
    shared = pool(clock, retry_after_s=0.1)
    for attempts, longest_s in ((1, 0.5), (2, 1.0), (3, 2.0), (9, 8.0), (99, 8.0)):
        for _ in range(20):
            assert 0.75 * longest_s <= shared.wait_s(attempts) <= longest_s
    assert shared.wait_s(1, retry_after_s=7) == 7
    assert shared.wait_s(1, retry_after_s=0.01) == 0.1
    assert shared.wait_s(1, retry_after_s=0) <= 0.5
    assert shared.wait_s(1, retry_after_s=3600) == 8
    assert shared.wait_s(5, has_others=True) == 0.1


def test_fallbacks_are_existing_other_names(clock: Clock) -> None:
    shared = pool(
        clock,
        1,
        fallbacks={"m": ["only", "gone", "m"], "*": ["only", "m"]},
        context_window_fallbacks={"only": ["m"]},
    )
    assert shared.fallbacks("m") == ("only",)
    assert shared.fallbacks("only") == ("m",)
    assert shared.fallbacks("only", context_window=True) == ("m",)
    assert shared.fallbacks("m", context_window=True) == ()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:16:50 GMT"}, 10.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "soon"}, None),
    ],
)
def test_retry_after_headers_are_parsed(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now_s=1000.0) == seconds


@pytest.mark.parametrize(
    ("status", "body", "too_long"),
    [
        (400, b'{"error": {"code": "context_length_exceeded", "message": "x"}}', True),
        (400, b'{"type": "error", "error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}', True),
        (400, b'{"detail": "This model\'s maximum context length is 8 tokens"}', True),
        (400, b'{"error": {"message": "bad temperature"}}', False),
        (429, b'{"error": {"code": "context_length_exceeded"}}', False),
        (400, b"<html>", False),
        (400, b"[]", False),
    ],
)
def test_context_window_error_is_recognised(status: int, body: bytes, too_long: bool) -> None:
    assert is_context_window(status, body) is too_long


@dataclass
class Entry:
    model_name: str
    litellm_params: dict[str, Any]
    model_info: dict[str, Any] = field(default_factory=dict)
    upstream: Literal["auto", "direct", "litellm"] = "auto"


@pytest.mark.parametrize(
    ("params", "provider", "model"),
    [
        ({"model": "openai/gpt-4o"}, "openai", "gpt-4o"),
        ({"model": "gpt-4o"}, "openai", "gpt-4o"),
        ({"model": "claude-sonnet-4-5"}, "anthropic", "claude-sonnet-4-5"),
        ({"model": "us.anthropic.claude-sonnet-4-6"}, "bedrock", "us.anthropic.claude-sonnet-4-6"),
        ({"model": "bedrock/converse/us.claude"}, "bedrock", "converse/us.claude"),
        ({"model": "hosted_vllm/meta-llama/Llama-3"}, "hosted_vllm", "meta-llama/Llama-3"),
        ({"model": "meta-llama/Llama-3", "custom_llm_provider": "openai"}, "openai", "meta-llama/Llama-3"),
        ({"model": "openai/x", "custom_llm_provider": "openai"}, "openai", "x"),
        ({"model": "our-own-model"}, "openai", "our-own-model"),
        ({"model": "brand_new/model"}, "brand_new", "model"),
    ],
)
def test_provider_and_model_are_derived_from_the_entry(params: dict[str, Any], provider: str, model: str) -> None:
    (deployment,) = deployments_of([Entry("m", params)], PriceMap(installed_price_map()))
    assert (deployment.provider, deployment.model) == (provider, model)


def test_deployments_of_one_name_are_numbered() -> None:
    entries = [
        Entry("a", {"model": "openai/x", "weight": 3}),
        Entry("b", {"model": "openai/responses/y"}, {"id": "1"}),
        Entry("a", {"model": "openai/z", "weight": "many"}, upstream="litellm"),
    ]
    first, second, third = deployments_of(entries, PriceMap(None))
    assert [item.id for item in (first, second, third)] == ["a/0", "b/0", "a/1"]
    assert (first.weight, third.weight, third.lane) == (3, 1, "litellm")
    assert (second.model, dict(second.info)) == ("y", {"mode": "responses", "id": "1"})
