"""Turns tracing on or off, once at start. When it is off, calls run unwrapped, and OpenTelemetry is not imported."""

from __future__ import annotations

from gateway.config.faults import ConfigError
from gateway.config.schema import TracingConfig
from gateway.endpoints.router import Handler
from gateway.observability.telemetry import Telemetry
from gateway.upstream.port import Upstream


class NoTracing:
    """Tracing that is off: returns everything that tracing could wrap unchanged."""

    def telemetry(self) -> Telemetry:
        return Telemetry()

    def upstream(self, upstream: Upstream) -> Upstream:
        return upstream

    def handler(self, handler: Handler) -> Handler:
        return handler

    async def stop(self) -> None:
        """Send the remaining spans, if any."""


def make_tracing(config: TracingConfig, instance: str) -> NoTracing:
    """Raises `ConfigError` if tracing is configured but its packages are not installed."""
    if config.endpoint is None:
        return NoTracing()
    try:
        from gateway.tracing.tracing import Tracing  # only here: it takes a tenth of a second and 10 MB
    except ImportError as error:
        how = "in a clone: make install-otel; with the wheel: pip install 'farebox-….whl[otel]'"
        raise ConfigError([f"tracing.endpoint is set, but {error.name} is not installed ({how})."]) from error
    return Tracing(config, instance=instance)
