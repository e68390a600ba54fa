"""One call on its way through the pipeline: who asks, for what, what was decided, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, Final

from gateway.tags import UNTAGGED, Tags
from gateway.upstream.port import Deployment, Lane
from gateway.wire.protocol import Request, WireProtocol
from policies.amounts import ZERO, Amount
from policies.budgets import Budget, Chain, HoldKind
from policies.holdout import Arm
from policies.pricing import Price, Usage
from policies.reservation import Balance, Granted
from policies.tokens import PromptCount
from policies.values import value_class

LOCAL_PROJECT: Final = "default"
NO_CHAIN: Final = Chain(())
UPSTREAM: Final = "upstream"  # the one stop whose time is the provider's


@value_class
class Principal:
    """Who calls. Everything that grants money comes from here, and this comes from the key alone."""

    key_id: str
    key_name: str
    project: str
    is_anonymous: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)
    allowed_models: tuple[str, ...] = ()
    concurrency_max: int | None = None
    budgets: tuple[Budget, ...] = ()  # the key's own limits
    credential: str | None = None  # the client's own, passed on in local mode to models that have none


class Timings:
    """How long each stop took, for `server-timing`."""

    __slots__ = ("_last_ns", "_started_ns", "_told", "_upstream_ns")

    def __init__(self) -> None:
        self._started_ns = self._last_ns = perf_counter_ns()
        self._upstream_ns = 0
        self._told: list[str] = []

    def stop(self, name: str) -> None:
        now = perf_counter_ns()
        took_ns = now - self._last_ns
        self._last_ns = now
        if name == UPSTREAM:
            self._upstream_ns += took_ns
        self._told.append(f"{name};dur={took_ns / 1e6:.3f}")

    @property
    def elapsed_ms(self) -> int:
        return (perf_counter_ns() - self._started_ns) // 1_000_000

    @property
    def overhead_us(self) -> int:
        """Everything up to the last stop that was not the provider's time."""
        return (self._last_ns - self._started_ns - self._upstream_ns) // 1000

    def header(self) -> str:
        return ", ".join(self._told)


@dataclass(slots=True)
class IntentTag:
    """What the answer and the usage event say about the step's intent."""

    intent: str
    confidence: float
    source: str


@value_class
class Original:
    """The history of a call that was made smaller since, what it counts, and what asking about it has cost so far."""

    messages: Sequence[Any]
    count: PromptCount
    asking_nano_usd: int = 0


@dataclass(slots=True)
class Call:
    """Made at the first stop and filled on the way. `id` names the reservation and the usage event too."""

    id: str
    protocol: WireProtocol
    principal: Principal
    request: Request
    tags: Tags = UNTAGGED
    run: str | None = None
    parent_run: str | None = (
        None  # the run that it spends from as well: named by this call, or by an earlier one of its run
    )
    model: str = ""  # the public name that is asked: the client's, or the one that routing chose
    timings: Timings = field(default_factory=Timings)
    forwarded_headers: Mapping[str, str] = field(default_factory=dict)
    intent: IntentTag | None = None
    count: PromptCount | None = None
    chain: Chain = field(default_factory=lambda: NO_CHAIN)
    deployment: Deployment | None = None
    price: Price | None = None
    grant: Granted | None = None
    told: tuple[
        Balance, ...
    ] = ()  # what the ledger said of the chain at a refusal, or at the end; empty: nothing since the grant
    output_cap: int | None = None  # what each choice is capped at upstream; None leaves the client's own cap
    actions: list[str] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    original: Original | None = None
    saved: Amount = ZERO
    price_asked: Price | None = (
        None  # of the model that was named, where another one answers: what is saved is counted against it
    )
    arm: Arm | None = None  # which side of the holdout its run is on; None: nothing is to be compared
    lane: Lane | None = None
    is_admitted: bool = False
    is_with_upstream: bool = False  # a request is at the provider now: whoever gives up here may have to pay
    raw: bytes = b""  # the body as it came, until the loop breaker has looked at it
    retry: int = 0  # how often the client's SDK has sent it before

    @property
    def holds_slices(self) -> bool:
        """Whether the hold grows with the answer. What does not stream cannot be watched, and is held whole."""
        return self.chain.hold is HoldKind.SLICES and self.request.has_output and self.protocol.streams

    @property
    def is_tagged(self) -> bool:
        return self.tags.workflow is not None


@dataclass(slots=True)
class Outcome:
    """How a call ended upstream. `usage` None with `reached` False means that nothing was spent."""

    status: str = "ok"  # ok, error, cancelled
    reached: bool = False  # the provider may have spent something
    usage: Usage | None = None
    output_tokens_seen: int = 0
    code: str = ""
    first_byte_ms: int | None = None
    http_status: int = 200


@value_class
class Settlement:
    """What was booked, for the answer's headers."""

    balances: tuple[Balance, ...] = ()
    booked: Amount = ZERO
    overrun: Amount = ZERO
