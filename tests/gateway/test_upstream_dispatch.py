"""The choice of the lane for a call."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from gateway.upstream.direct import DirectLane
from gateway.upstream.dispatch import Forwarder, lane_of
from gateway.upstream.litellm_lane import LiteLLMLane
from gateway.upstream.mock import MockLane
from gateway.upstream.port import Deployment, Lane, ProtocolName, UpstreamCall
from tests.fake_provider import FakeProvider


def deployment(
    provider: str,
    *,
    lane: Literal["auto", "direct", "litellm"] = "auto",
    info: dict[str, Any] | None = None,
    **params: Any,
) -> Deployment:
    return Deployment("m/0", "m", provider, "x", lane, params, info or {})


BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
OWN: dict[str, Any] = {"api_base": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("entry", "protocol", "lane"),
    [
        (deployment("openai", mock_response="hi"), "chat", "mock"),
        (deployment("openai", mock_response="hi", lane="litellm"), "chat", "mock"),
        (deployment("openai"), "chat", "direct"),
        (deployment("openai"), "responses", "direct"),
        (deployment("openai"), "embeddings", "direct"),
        (deployment("openai"), "messages", "litellm"),
        (deployment("openai", lane="litellm"), "chat", "litellm"),
        (deployment("openai", info={"mode": "responses"}), "chat", "litellm"),
        (deployment("openai", info={"mode": "responses"}), "responses", "direct"),
        (deployment("anthropic"), "messages", "direct"),
        (deployment("anthropic"), "chat", "litellm"),
        (deployment("anthropic"), "responses", "litellm"),
        (deployment("hosted_vllm", **OWN), "chat", "direct"),
        (deployment("hosted_vllm"), "chat", "litellm"),
        (deployment("hosted_vllm", **OWN), "responses", "litellm"),
        (deployment("groq"), "chat", "direct"),
        (deployment("groq"), "embeddings", "litellm"),
        (deployment("bedrock", aws_region_name="us-east-1"), "chat", "litellm"),
        (deployment("gemini"), "chat", "litellm"),
        (deployment("azure", **OWN), "chat", "litellm"),
        (deployment("something_new", **OWN), "chat", "litellm"),
        (deployment("something_new", lane="direct", **OWN), "chat", "direct"),
        (deployment("something_new", lane="direct", **OWN), "messages", "direct"),
    ],
)
def test_lane_depends_on_provider_protocol_and_entry(entry: Deployment, protocol: ProtocolName, lane: Lane) -> None:
    assert lane_of(entry, protocol, {}) == lane


def test_api_base_from_the_environment_makes_the_lane_direct() -> None:
    entry = deployment("hosted_vllm")
    assert lane_of(entry, "chat", {"HOSTED_VLLM_API_BASE": "http://127.0.0.1:1/v1"}) == "direct"


class CountingLane(LiteLLMLane):
    """Loads nothing, and counts how often it was asked to."""

    def __init__(self) -> None:
        super().__init__(environment={})
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1


def forwarder(litellm: LiteLLMLane) -> Forwarder:
    mock = MockLane(count=len, now_s=lambda: 0.0, new_id=lambda: "x")
    return Forwarder(direct=DirectLane(environment={}), litellm=litellm, mock=mock, environment={})


@pytest.mark.parametrize(
    ("entries", "prepared"),
    [
        ([], 0),
        ([deployment("openai"), deployment("anthropic"), deployment("x", mock_response="hi")], 0),
        ([deployment("openai"), deployment("bedrock")], 1),
        ([deployment("voyage", info={"mode": "embedding"})], 1),
    ],
)
async def test_litellm_is_preloaded_only_if_an_entry_needs_it(entries: list[Deployment], prepared: int) -> None:
    lane = CountingLane()
    forwarding = forwarder(lane)
    forwarding.prepare(entries)
    await forwarding.close()
    assert lane.prepared == prepared


async def test_calls_are_sent_through_the_lane_of_their_entry() -> None:
    forwarding = forwarder(CountingLane())
    async with FakeProvider() as provider:
        for entry, lane in (
            (deployment("openai", mock_response="hi"), "mock"),
            (deployment("openai", api_base=provider.openai_url), "direct"),
        ):
            answer = await forwarding.send(entry, UpstreamCall("chat", BODY, False))
            assert (answer.lane, answer.deployment) == (lane, entry)
            assert json.loads(answer.body)["choices"]
    await forwarding.close()


@pytest.mark.parametrize(("hops", "passes"), [("", True), ("0", True), ("7", True), ("8", False), ("999", False)])
async def test_call_that_passed_8_gateways_is_508(hops: str, passes: bool) -> None:
    forwarding = forwarder(CountingLane())
    async with FakeProvider() as provider:
        asked = UpstreamCall("chat", BODY, False, headers={"x-farebox-hops": hops} if hops else {})
        answer = await forwarding.send(deployment("openai", api_base=provider.openai_url), asked)
        sent_hops = [request.headers["x-farebox-hops"] for request in provider.requests]
    assert sent_hops == ([str(int(hops or 0) + 1)] if passes else [])
    if passes:
        assert answer.status == 200
    else:
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (508, "gateway_ring")
    await forwarding.close()


async def test_hop_limit_applies_to_litellm_and_not_to_the_mock() -> None:
    forwarding = forwarder(CountingLane())
    asked = UpstreamCall("chat", {"model": "m", "messages": []}, False, headers={"x-farebox-hops": "8"})
    assert (await forwarding.send(deployment("bedrock"), asked)).status == 508
    assert (await forwarding.send(deployment("openai", mock_response="hi"), asked)).status == 200
    await forwarding.close()
