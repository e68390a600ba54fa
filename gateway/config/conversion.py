"""Converts parts of the configuration to the arguments of the pipeline: seconds to milliseconds, lists to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.config.schema import Config
from gateway.pipeline.fitting import ReservationRules
from gateway.store.housekeeping import Retention
from gateway.upstream.deployments import PoolSettings
from gateway.upstream.port import Timeouts
from policies.reservation import OnLost


def pool_settings_of(config: Config) -> PoolSettings:
    router = config.router_settings
    return PoolSettings(
        num_retries=router.num_retries,
        retry_after_s=router.retry_after,
        allowed_fails=router.allowed_fails,
        cooldown_s=router.cooldown_time,
        routing_strategy=router.routing_strategy,
        fallbacks=_joined(router.fallbacks),
        context_window_fallbacks=_joined(router.context_window_fallbacks),
    )


def retention_of(config: Config) -> Retention:
    return Retention(config.storage.retention_months, config.storage.audit_days)


def _joined(tables: Sequence[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    return {name: models for table in tables for name, models in table.items()}


def timeouts_of(config: Config) -> Timeouts:
    router = config.router_settings
    return Timeouts(
        connect_ms=int(router.connect_timeout * 1000),
        first_byte_ms=int(router.timeout * 1000),
        idle_ms=int(router.stream_timeout * 1000),
        total_ms=int(router.timeout * 1000),
    )


def rules_of(config: Config, owner: str) -> ReservationRules:
    reservations = config.reservations
    return ReservationRules(
        ttl_ms=int(reservations.ttl_seconds * 1000),
        output_tokens_min=reservations.output_tokens_min,
        output_tokens_unknown=reservations.output_tokens_unknown,
        slice_tokens=reservations.slice_tokens,
        on_lost=OnLost(reservations.on_lost),
        owner=owner,
    )
