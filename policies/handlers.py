"""The defaults of each intent: room for the answer, compression, a tier, and checks of the answer.

There is one handler per intent, in a registry that third parties can extend: a package registers an object like `Handler`
under the entry point group `farebox.handlers`, named like its intent, and it replaces the built-in one. Settings and callers
override a handler's defaults; a handler never loosens a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any, Protocol

from policies.answer_checks import (
    Answer,
    complete,
    from_source,
    matches_schema,
    names_a_choice,
    names_a_verdict,
    not_empty,
    shorter_than_source,
)
from policies.intents import Intent, parse_intent
from policies.routing import Tier
from policies.settings import COMPRESSION_STRATEGIES
from policies.values import value_class

ENTRY_POINT_GROUP = "farebox.handlers"

# A check returns one phrase that says what is wrong with an answer, or None.
Check = Callable[[Answer], str | None]


@value_class
class Assessment:
    """`score` from 0 (every check failed) to 1; `faults` has the findings of the failed checks."""

    score: float
    faults: tuple[str, ...]


@value_class
class Handler:
    """The defaults of one intent.

    `prompt_share_percent` is the usual share of the prompt in a step's tokens; it gives the expected length of an answer, for
    comparing costs. `output_tokens_min` is the shortest useful answer: if an answer is shortened although the call would
    still fit (a `clamp` with a share), it stays above this. `compression` lists strategies in order: the first is always
    used, the next ones under pressure, if the one before did not save enough. `tier_floor` is the lowest tier that does this
    well; the built-in handlers leave it to the thresholds of the settings. `checks` are (weight, check) pairs: the heavier
    ones count more.
    """

    intent: Intent
    prompt_share_percent: int
    output_tokens_min: int
    compression: tuple[str, ...]
    tier_floor: Tier = Tier.FAST
    checks: tuple[tuple[int, Check], ...] = ((1, not_empty),)

    def __post_init__(self) -> None:
        unknown = [name for name in self.compression if name not in COMPRESSION_STRATEGIES]
        if unknown or not self.compression:
            words = ", ".join(COMPRESSION_STRATEGIES)
            raise ValueError(f"compression names at least one of {words}, not {unknown or 'nothing'}")
        if not 0 <= self.prompt_share_percent <= 100 or self.output_tokens_min < 0:
            raise ValueError("prompt_share_percent is from 0 to 100, output_tokens_min not negative")

    def output_tokens_expected(self, allocation_tokens: int) -> int:
        """The usual length of an answer in a step with this allocation, for comparing costs before the call."""
        return max(self.output_tokens_min, allocation_tokens * (100 - self.prompt_share_percent) // 100)

    def strategies(self, setting: str, *, is_set: bool) -> tuple[str, ...]:
        """The strategies in the order to try. If somebody set the setting, it is the only one; its default leaves the choice
        to the handler."""
        return (setting,) if is_set else self.compression

    def assess(self, answer: Answer) -> Assessment:
        """Run all checks. A tool call scores 1, because it has no text to check."""
        if answer.is_tool_call:
            return Assessment(1.0, ())
        results = [(weight, check(answer)) for weight, check in self.checks]
        total = sum(weight for weight, _ in results)
        lost = sum(weight for weight, fault in results if fault is not None)
        return Assessment(1 - lost / total if total else 1.0, tuple(fault for _, fault in results if fault is not None))


# Weights of the checks. At the default minimum score of 0.8, a fault that makes an answer useless (4: at least a quarter of
# all weight) fails it by itself. One that only makes it doubtful (1: dates may be reworded, and a filter may answer with
# numbers of items) merely lowers the score.
_HANDLERS = (
    Handler(
        Intent.EXTRACT,
        prompt_share_percent=80,
        output_tokens_min=32,
        compression=("structural", "extractive"),
        checks=((4, not_empty), (4, complete), (4, matches_schema), (1, from_source)),
    ),
    Handler(
        Intent.SUMMARIZE,
        prompt_share_percent=80,
        output_tokens_min=64,
        compression=("extractive", "structural"),
        checks=((4, not_empty), (4, complete), (4, matches_schema), (4, shorter_than_source)),
    ),
    Handler(
        Intent.GENERATE,
        prompt_share_percent=40,
        output_tokens_min=128,
        compression=("structural",),
        checks=((4, not_empty), (4, complete), (4, matches_schema)),
    ),
    Handler(
        Intent.VALIDATE,
        prompt_share_percent=80,
        output_tokens_min=16,
        compression=("structural",),
        checks=((4, not_empty), (4, complete), (4, matches_schema), (4, names_a_verdict)),
    ),
    Handler(
        Intent.SEND,
        prompt_share_percent=70,
        output_tokens_min=16,
        compression=("template", "structural"),
        checks=((4, not_empty), (4, complete)),
    ),
    Handler(
        Intent.TRANSFORM,
        prompt_share_percent=50,
        output_tokens_min=64,
        compression=("structural",),
        checks=((4, not_empty), (4, complete), (4, matches_schema)),
    ),
    Handler(
        Intent.CONDITIONAL,
        prompt_share_percent=95,
        output_tokens_min=1,
        compression=("extractive", "structural"),
        checks=((4, not_empty), (4, matches_schema), (4, names_a_choice)),
    ),
    Handler(
        Intent.AGGREGATE,
        prompt_share_percent=75,
        output_tokens_min=64,
        compression=("structural", "extractive"),
        checks=((4, not_empty), (4, complete), (4, matches_schema)),
    ),
    Handler(
        Intent.FILTER,
        prompt_share_percent=80,
        output_tokens_min=16,
        compression=("structural",),
        checks=((4, complete), (4, matches_schema), (1, from_source)),
    ),
    Handler(
        Intent.ENRICH,
        prompt_share_percent=60,
        output_tokens_min=64,
        compression=("structural",),
        checks=((4, not_empty), (4, complete), (4, matches_schema)),
    ),
)
HANDLERS: Mapping[Intent, Handler] = MappingProxyType({handler.intent: handler for handler in _HANDLERS})


class EntryPoint(Protocol):
    """An item of `importlib.metadata.entry_points(group="farebox.handlers")`."""

    @property
    def name(self) -> str: ...

    def load(self) -> Any: ...


@value_class
class Registry:
    """The handlers in force. `faults` says which registered ones are not used, and why."""

    handlers: Mapping[Intent, Handler] = field(default_factory=lambda: HANDLERS)
    faults: tuple[str, ...] = ()

    def of(self, intent: str) -> Handler:
        """Raises IntentClassificationError for anything but the ten intents."""
        return self.handlers[parse_intent(intent)]

    def with_handler(self, handler: Handler) -> Registry:
        """The same registry with this handler for its intent."""
        return Registry(MappingProxyType({**self.handlers, handler.intent: handler}), self.faults)


def registry_of(entry_points: Iterable[EntryPoint]) -> Registry:
    """The built-in handlers, replaced by those of entry points: each is a `Handler`, or a function that makes one.

    A handler that cannot be loaded, is of another type or is named unlike its intent is left out, with a sentence in
    `faults`, so that a broken package does not stop the gateway. If two are registered for one intent, the one whose entry
    point sorts first wins, so that the result does not depend on the order of installation.
    """
    registry, faults, registered = Registry(), [], set[Intent]()
    for point in sorted(entry_points, key=lambda point: (point.name, str(getattr(point, "value", "")))):
        handler = _load_handler(point)
        if isinstance(handler, str):
            faults.append(handler)
        elif handler.intent in registered:
            faults.append(f"handler '{point.name}': another package already brings one for {handler.intent}.")
        else:
            registered.add(handler.intent)
            registry = registry.with_handler(handler)
    return Registry(registry.handlers, tuple(faults))


def _load_handler(point: EntryPoint) -> Handler | str:
    try:
        loaded = point.load()
        handler = loaded if isinstance(loaded, Handler) else loaded()
    except Exception as error:  # noqa: BLE001 - another package's code may fail in any way
        return f"handler '{point.name}' cannot be loaded: {type(error).__name__}: {error}."[:300]
    if not isinstance(handler, Handler):
        return f"handler '{point.name}' gives {type(handler).__name__}, not a Handler."
    if handler.intent != point.name:
        return f"handler '{point.name}' is for {handler.intent}: the entry point must be named like its intent."
    return handler
