"""Forwarding: picks the lane for each call, and owns the lanes.

mock      the entry has a `mock_response`
direct    the provider speaks the client's protocol itself, or the entry says `upstream: direct`
litellm   everything else: LiteLLM translates
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from gateway.upstream.direct import DirectLane
from gateway.upstream.error_bodies import error_body
from gateway.upstream.litellm_lane import LiteLLMLane
from gateway.upstream.mock import MockLane
from gateway.upstream.port import Deployment, Lane, ProtocolName, Upstream, UpstreamAnswer, UpstreamCall
from gateway.upstream.providers import speaks_protocol
from gateway.upstream.request import HOPS_HEADER, hops_of

# A call that has passed this many gateways is taken to be in a loop.
_HOPS_MAX: Final = 8


def lane_of(deployment: Deployment, protocol: ProtocolName, environment: Mapping[str, str]) -> Lane:
    """The lane for calls of this protocol to this deployment."""
    if deployment.is_mock:
        return "mock"
    if deployment.lane != "auto":
        return deployment.lane
    return "direct" if speaks_protocol(deployment, protocol, environment) else "litellm"


class Forwarder(Upstream):
    """The gateway's only way out. Contacts the deployment's own origin and nothing else."""

    def __init__(
        self, *, direct: DirectLane, litellm: LiteLLMLane, mock: MockLane, environment: Mapping[str, str]
    ) -> None:
        self._direct = direct
        self._litellm = litellm
        self._mock = mock
        self._environment = environment

    def prepare(self, deployments: Iterable[Deployment]) -> None:
        """Start loading LiteLLM in the background if one of these models needs it for its main protocol."""
        if any(lane_of(item, _main_protocol(item), self._environment) == "litellm" for item in deployments):
            self._litellm.prepare()

    async def send(self, deployment: Deployment, call: UpstreamCall) -> UpstreamAnswer:
        lane = lane_of(deployment, call.protocol, self._environment)
        if lane != "mock" and hops_of(call.headers) >= _HOPS_MAX:
            return _loop_refusal(deployment, call.protocol, lane)
        if lane == "direct":
            return await self._direct.send(deployment, call)
        # These lanes cannot tell when a request leaves, so report it now: an earlier attempt in the direct lane may have waited.
        notified = None if call.send_observer is None else call.send_observer.before_send()
        if notified is not None:
            await notified
        return await (self._mock if lane == "mock" else self._litellm).send(deployment, call)

    async def close(self) -> None:
        await self._direct.close()
        await self._litellm.close()
        await self._mock.close()


def _loop_refusal(deployment: Deployment, protocol: ProtocolName, lane: Lane) -> UpstreamAnswer:
    message = f"The call passed too many gateways ({HOPS_HEADER}): the model's api_base leads back to this one."
    body = error_body(protocol, 508, message, code="gateway_ring")
    return UpstreamAnswer(508, {"content-type": "application/json"}, deployment, lane, body=body)


def _main_protocol(deployment: Deployment) -> ProtocolName:
    """The protocol that a model's clients most likely use. For any other one, LiteLLM is loaded when the first call needs it."""
    if deployment.info.get("mode") == "embedding":
        return "embeddings"
    return "messages" if deployment.provider == "anthropic" else "chat"
