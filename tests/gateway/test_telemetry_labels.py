"""Labels chosen by callers are bounded: each is a series that this process and Prometheus keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.observability.telemetry import LABELS_MAX, Telemetry
from gateway.pipeline.call import Call, Outcome, Principal
from gateway.upstream.port import Deployment
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import ZERO


def test_model_labels_above_the_limit_share_the_label_other() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    request: Any = Request({}, "m")
    call = Call("c", PROTOCOLS["/v1/chat/completions"], Principal("", "local", "default"), request)
    template = Deployment("m/0", "m", "openai", "m", "auto", {}, {})
    for number in range(LABELS_MAX + 50):
        call.deployment = replace(template, name=f"openai/{number}")
        telemetry.ended(call, Outcome(), None, ZERO)
    exposition = telemetry.exposition().decode()
    series = [line for line in exposition.splitlines() if line.startswith("farebox_requests_total{")]
    assert len(series) == LABELS_MAX + 1
    assert any('model="other"' in line and line.endswith(" 50.0") for line in series)
