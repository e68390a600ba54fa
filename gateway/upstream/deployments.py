"""Chooses the deployment for each attempt, and lets a deployment that fails rest.

The rules are those of LiteLLM's router, configured by its `router_settings`: entries with the same name share the load; one that
fails too often rests for `cooldown_time`; the only entry of a name is called all the same. The state is local to this process.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.upstream.port import Deployment, UpstreamError

# Statuses that rest a deployment at once, because it cannot take calls now: a bad key, no such model, no quota left.
_COOLDOWN_STATUSES: Final = frozenset({401, 403, 404, 429})
_COUNTED_STATUSES: Final = frozenset({408, 409})  # and every 5xx
_EXPANDED_MAX: Final = 2_000
_COOLDOWN_MAX_S: Final = 300.0  # a deployment is tried again after this, however long its retry-after
# The longest pause before a retry. If the provider asks for a longer one, the client gets the error at once: a waiting call
# holds tokens of its budgets, and its client could call another gateway meanwhile.
_PAUSE_MAX_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The part of LiteLLM's `router_settings` that concerns the choice. `fallbacks` maps a name to other names."""

    num_retries: int = 2
    retry_after_s: float = 0.0  # the shortest wait before a retry
    allowed_fails: int = 3
    cooldown_s: float = 5.0
    routing_strategy: Literal["simple-shuffle", "least-busy"] = "simple-shuffle"
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    context_window_fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Health:
    in_flight: int = 0
    fails: int = 0
    first_failed_s: float = 0.0
    cooldown_until_s: float = 0.0


class DeploymentPool:
    """All deployments by public name. `clock_s` is monotonic. `rng` picks among equals. `expand` creates the deployments of
    a name that matches only a wildcard entry."""

    def __init__(
        self,
        deployments: Iterable[Deployment],
        settings: PoolSettings,
        *,
        clock_s: Callable[[], float],
        rng: random.Random,
        expand: Callable[[str], Sequence[Deployment]] = lambda name: (),
    ) -> None:
        self._settings = settings
        self._expand = expand
        self._expanded: dict[str, Sequence[Deployment]] = {}
        self._clock_s = clock_s
        self._rng = rng
        self._by_name: dict[str, list[Deployment]] = {}
        for deployment in deployments:
            self._by_name.setdefault(deployment.name, []).append(deployment)
        self._health: defaultdict[str, _Health] = defaultdict(_Health)  # by the deployment's id

    @property
    def names(self) -> tuple[str, ...]:
        """The public names that are shown, in the order of the configuration."""
        return tuple(name for name, deployments in self._by_name.items() if not deployments[0].info.get("hidden"))

    def of(self, name: str) -> Sequence[Deployment]:
        """All deployments of a name, resting or not; empty for an unknown one."""
        return self._by_name.get(name) or self._expanded.get(name) or self._expand_name(name)

    def _expand_name(self, name: str) -> Sequence[Deployment]:
        """Clients choose these names, so the cache is bounded: when it is full, it starts over."""
        deployments = self._expand(name)
        if deployments:
            if len(self._expanded) >= _EXPANDED_MAX:
                self._expanded.clear()
                self._health.clear()
            self._expanded[name] = deployments
        return deployments

    def cache_ttl_s(self, name: str) -> int | None:
        """How long answers under this name may be cached, according to its entry; None: not at all."""
        deployments = self.of(name)
        ttl_s = deployments[0].info.get("cache_ttl_seconds") if deployments else None
        return ttl_s if type(ttl_s) is int and ttl_s > 0 else None

    def choose(
        self, name: str, exclude: Collection[str] = (), *, include_cooling_down: bool = False
    ) -> Deployment | None:
        """The deployment for the next attempt, or None.

        `exclude` holds the ids that this call has tried. `include_cooling_down` is for when nothing else is left: if all are resting,
        the one whose rest ends first is chosen.
        """
        untried = [item for item in self.of(name) if item.id not in exclude]
        now_s = self._clock_s()
        available = [item for item in untried if now_s >= self._health[item.id].cooldown_until_s]
        if not available and len(self.of(name)) == 1:
            available = untried  # if the only deployment rested, every call would fail for certain
        if available:
            return available[0] if len(available) == 1 else self._pick(available)
        if untried and include_cooling_down:
            return min(untried, key=lambda item: self._health[item.id].cooldown_until_s)
        return None

    def acquire(self, deployment: Deployment) -> None:
        """A call is to be answered by this deployment. It counts as in flight until `release`."""
        self._health[deployment.id].in_flight += 1

    def release(self, deployment: Deployment) -> None:
        """The call is over, or another deployment answers it."""
        health = self._health[deployment.id]
        # Not below 0: the table starts over when clients have named too many models of a wildcard entry.
        health.in_flight = max(0, health.in_flight - 1)

    def report(self, deployment: Deployment, status: int, *, retry_after_s: float | None = None) -> None:
        """Report how an attempt ended: `status` of the answer or of the `UpstreamError`, and the provider's retry-after."""
        health = self._health[deployment.id]
        if status < 400:
            health.fails = 0
            return
        now_s = self._clock_s()
        if status in _COOLDOWN_STATUSES:
            requested_s = min(retry_after_s or 0.0, _COOLDOWN_MAX_S)
            health.cooldown_until_s = now_s + max(self._settings.cooldown_s, requested_s)
        elif status >= 500 or status in _COUNTED_STATUSES:
            self._count_failure(health, now_s)

    def is_cooling_down(self, deployment: Deployment) -> bool:
        return len(self.of(deployment.name)) > 1 and self._is_in_cooldown(deployment)

    def is_down(self, name: str) -> bool:
        """Whether every deployment of this name has failed so recently that another name is the better choice."""
        return all(self._is_in_cooldown(item) for item in self.of(name))

    def in_flight(self, deployment: Deployment) -> int:
        return self._health[deployment.id].in_flight

    def should_retry(
        self,
        failure: int | UpstreamError,
        attempts: int,
        *,
        has_others: bool = False,
        advice: str | None = None,
        retry_after_s: float | None = None,
    ) -> bool:
        """Whether to try again after `attempts` attempts (1 or more).

        Never after bytes of an answer were received: they cost money, and the client may have seen them. A fault of the
        deployment itself (401, 403, 404) is retried only if `has_others`, and so is one that asks for a pause of more
        than 8 s. `advice` is the answer's `x-should-retry`.
        """
        if attempts > self._settings.num_retries:
            return False
        if retry_after_s is not None and retry_after_s > _PAUSE_MAX_S and not has_others:
            return False
        if isinstance(failure, UpstreamError):
            return not failure.bytes_received
        if advice in ("true", "false"):
            return advice == "true"
        if failure in (401, 403, 404):
            return has_others
        return failure in (408, 409, 429) or failure >= 500

    def wait_s(self, attempts: int, *, retry_after_s: float | None = None, has_others: bool = False) -> float:
        """The delay before the next attempt: the provider's retry-after up to 8 s, else exponential back-off from 0.5 s to 8 s,
        less up to a quarter of jitter (as in OpenAI's own client). If `has_others`, only the configured minimum."""
        if has_others:
            return self._settings.retry_after_s
        if retry_after_s:
            return max(min(retry_after_s, _PAUSE_MAX_S), self._settings.retry_after_s)
        backoff_s = min(0.5 * 2.0 ** min(attempts - 1, 10), _PAUSE_MAX_S)
        return max(backoff_s * (1 - 0.25 * self._rng.random()), self._settings.retry_after_s)

    def fallbacks(self, name: str, *, context_window: bool = False) -> tuple[str, ...]:
        """The public names to try after this one failed, without duplicates or unknown names. `*` applies to every name."""
        table = self._settings.context_window_fallbacks if context_window else self._settings.fallbacks
        candidates = [*table.get(name, ()), *table.get("*", ())]
        return tuple(dict.fromkeys(candidate for candidate in candidates if candidate != name and self.of(candidate)))

    def _pick(self, available: Sequence[Deployment]) -> Deployment:
        if self._settings.routing_strategy == "least-busy":
            in_flight_min = min(self._health[item.id].in_flight for item in available)
            available = [item for item in available if self._health[item.id].in_flight == in_flight_min]
        weights = [max(0, item.weight) for item in available]
        if not any(weights):
            return self._rng.choice(available)
        return self._rng.choices(available, weights)[0]

    def _count_failure(self, health: _Health, now_s: float) -> None:
        # Failures are counted for a minute from the first one, so that rare ones never add up.
        if health.fails == 0 or now_s - health.first_failed_s > 60.0:
            health.fails, health.first_failed_s = 0, now_s
        health.fails += 1
        if health.fails > self._settings.allowed_fails:
            health.cooldown_until_s = now_s + self._settings.cooldown_s
            health.fails = 0

    def _is_in_cooldown(self, deployment: Deployment) -> bool:
        return self._clock_s() < self._health[deployment.id].cooldown_until_s
