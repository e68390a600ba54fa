"""Prometheus metrics. Runs, steps and keys are never labels: their number is unbounded, and their names belong to tenants.

The workers of one `farebox serve` share a port, so a scrape reaches any of them. They keep their figures in files
(`METRICS_FOLDER_VARIABLE`, set by the parent), and any of them answers for all: counters are summed; for a gauge it is the
sum or maximum over live workers.
"""

from __future__ import annotations

import os
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.pipeline.call import Call, Outcome
from policies.amounts import NANO_USD_PER_USD, Amount
from policies.pricing import Usage

# From a cached answer to `router_settings.timeout`.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEAD_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
# Callers name workflows, and also models if an entry of model_list has a `*`: only this many get labels of their own.
LABELS_MAX: Final = 200
METRICS_FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"

# A third of all series would be times of creation, which no query here uses.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Telemetry:
    """One per process. `/metrics` shows `registry`."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._workflows: set[str] = set()
        self._models: set[str] = set()
        self._count_calls(self.registry)
        self._gauge_state(self.registry)
        self._requests = _Series(self.requests)
        self._duration = _Series(self.duration)
        self._first_token = _Series(self.first_token)
        self._tokens = _Series(self.tokens)
        self._cost = _Series(self.cost)
        self._admissions = _Series(self.admissions)
        self._saved_tokens = _Series(self.saved_tokens)

    def _count_calls(self, registry: CollectorRegistry) -> None:
        calls = ("route", "model", "provider", "status")
        self.requests = Counter("farebox_requests", "Calls by outcome.", calls, registry=registry)
        self.duration = Histogram(
            "farebox_request_duration_seconds",
            "Time from the request to the last byte.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "farebox_time_to_first_token_seconds",
            "Time to the first byte of a streamed answer, not counting headers.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.overhead = Histogram(
            "farebox_overhead_seconds",
            "Time a call spends in the gateway before it is sent to the provider.",
            buckets=_OVERHEAD_SECONDS,
            registry=registry,
        )
        self.tokens = Counter("farebox_tokens", "Tokens settled.", ("direction", "model"), registry=registry)
        self.cost = Counter("farebox_cost_usd", "USD settled.", ("model", "workflow"), registry=registry)
        self.admissions = Counter(
            "farebox_admissions", "Calls admitted and refused.", ("result", "reason"), registry=registry
        )
        self.expired = Counter("farebox_reservations_expired", "Holds whose owner was lost.", registry=registry)
        self.overrun = Counter("farebox_overrun_usd", "USD settled beyond the holds.", registry=registry)
        self.overruns = Counter("farebox_overruns", "Calls settled beyond their holds.", registry=registry)
        self.saved_tokens = Counter(
            "farebox_saved_tokens", "Tokens not sent, by what saved them.", ("by",), registry=registry
        )
        self.orchestration_errors = Counter(
            "farebox_orchestration_errors",
            "Calls that went on without orchestration because of an internal error.",
            registry=registry,
        )

        self.connections_ended = Counter(
            "farebox_connections_ended",
            "Client connections that the gateway closed: slow, malformed, or too many.",
            ("reason",),
            registry=registry,
        )

    def _gauge_state(self, registry: CollectorRegistry) -> None:
        self.connections = Gauge(
            "farebox_connections", "Open client connections.", registry=registry, multiprocess_mode="livesum"
        )
        self.in_flight = Gauge(
            "farebox_calls_in_flight", "Calls being served.", registry=registry, multiprocess_mode="livesum"
        )
        self.tasks = Gauge("farebox_tasks", "Tasks of the event loop.", registry=registry, multiprocess_mode="livesum")
        self.outbox = _largest("farebox_outbox_records", "Usage events that the store does not have yet.", registry)
        self.outbox_cap = _largest(
            "farebox_outbox_cap_records", "Outbox size at which calls with enforced budgets are refused.", registry
        )
        self.flush_lag = _largest(
            "farebox_flush_lag_seconds", "Age of the oldest usage event that the store does not have yet.", registry
        )
        self.dead_letters = Gauge(
            "farebox_dead_letters",
            "Events that the store refused, since the start; they are in usage_dead_letter.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.dropped = Gauge(
            "farebox_events_dropped",
            "Events of calls without a budget that were dropped because the queue was full, since the start.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.spooled = Gauge(
            "farebox_spooled_records",
            "Settlements on this machine's disk that wait for the ledger.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.breaker = _largest(
            "farebox_store_breaker_state", "Breaker of the store or ledger: 0 closed, 1 open.", registry, ("store",)
        )
        self.drift = _largest(
            "farebox_reconcile_drift", "Difference between ledger and usage rows; 0 when idle.", registry, ("unit",)
        )
        scope = ("scope", "name")
        self.budget_limit = _largest("farebox_budget_limit_usd", "Limit of budgets on one name.", registry, scope)
        self.budget_settled = _largest("farebox_budget_settled_usd", "Settled on budgets on one name.", registry, scope)
        self.budget_reserved = _largest("farebox_budget_reserved_usd", "Held on budgets on one name.", registry, scope)

    def exposition(self) -> bytes:
        """The response of `/metrics`, in Prometheus' text format."""
        if METRICS_FOLDER_VARIABLE not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def ended(self, call: Call, outcome: Outcome, usage: Usage | None, amount: Amount) -> None:
        deployment = call.deployment
        model = _bounded(deployment.name, self._models) if deployment is not None else "none"
        provider = deployment.provider if deployment is not None else "none"
        route = call.protocol.name
        self._requests[route, model, provider, outcome.status].inc()
        self._duration[(route,)].observe(call.timings.elapsed_ms / 1000)
        self.overhead.observe(call.timings.overhead_us / 1e6)
        if call.grant is not None:
            # With a breach, the reason is the observed scope that would have refused, which is one of six.
            breached = call.grant.breaches[0].partition("/")[0] if call.grant.breaches else ""
            self._admissions["observed" if breached else "granted", breached].inc()
        if outcome.first_byte_ms is not None and call.request.stream:
            self._first_token[(model,)].observe(outcome.first_byte_ms / 1000)
        if usage is not None:
            if call.saved.tokens > 0:
                self._saved_tokens[("compress",)].inc(call.saved.tokens)
            self._tokens["input", model].inc(usage.input_tokens)
            self._tokens["output", model].inc(usage.output_tokens)
        if amount.nano_usd > 0:
            workflow = _bounded(call.tags.workflow or "", self._workflows)
            self._cost[model, workflow].inc(amount.nano_usd / NANO_USD_PER_USD)

    def refused(self, call: Call, code: str) -> None:
        self.rejected(call.protocol.name, code)

    def rejected(self, route: str, code: str) -> None:
        """Refused, perhaps before there was a call: without a key, or with a request that cannot be read."""
        self._admissions["refused", code].inc()
        self._requests[route, "none", "none", "refused"].inc()

    def broke(self, route: str) -> None:
        """A fault of ours before the call was admitted."""
        self._requests[route, "none", "none", "error"].inc()

    def overran(self, call: Call, overrun: Amount) -> None:
        self.overruns.inc()
        self.overrun.inc(max(0, overrun.nano_usd) / NANO_USD_PER_USD)


class _Series(dict[tuple[str, ...], Any]):
    """Caches `metric.labels(…)`, which takes a lock: there are few label values but many calls."""

    def __init__(self, metric: Counter | Histogram) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        series = self[labels] = self._metric.labels(*labels)
        return series


def _bounded(name: str, known_values: set[str]) -> str:
    """The first names get labels of their own, all others share one, because each label is a series to keep."""
    if name not in known_values:
        if len(known_values) >= LABELS_MAX:
            return "other"
        known_values.add(name)
    return name


def _largest(name: str, description: str, registry: CollectorRegistry, labels: tuple[str, ...] = ()) -> Gauge:
    """A gauge of something that all processes share: the largest value is right, because that process has seen most."""
    return Gauge(name, description, labels, registry=registry, multiprocess_mode="livemax")
