"""The timeouts of a call: the gateway's, shortened by those of the entry."""

from __future__ import annotations

import dataclasses

from gateway.upstream.port import Deployment, Timeouts, UpstreamCall


def effective_timeouts(deployment: Deployment, call: UpstreamCall) -> Timeouts:
    """The call's timeouts, shortened by the entry's `timeout` and `stream_timeout` (in seconds, as in LiteLLM).

    For a stream these limit the wait for its first byte; for a buffered answer, the whole call.
    """
    seconds = deployment.params.get("stream_timeout") if call.stream else None
    seconds = seconds or deployment.params.get("timeout")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
        return call.timeouts
    limit_ms = max(1, int(seconds * 1000))
    timeouts = call.timeouts
    shortened = dataclasses.replace(timeouts, first_byte_ms=min(timeouts.first_byte_ms, limit_ms))
    return shortened if call.stream else dataclasses.replace(shortened, total_ms=min(timeouts.total_ms, limit_ms))
