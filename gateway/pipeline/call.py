"""One call in the pipeline: its caller, its request, the decisions made on it, and how it ended."""

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
UPSTREAM: Final = "upstream"  # the only stage whose time is spent by the provider


@value_class
class Principal:
    """Who calls. Every right to spend money derives from this, and this derives from the API key alone."""

    key_id: str
    key_name: str
    project: str
    is_anonymous: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)
    allowed_models: tuple[str, ...] = ()
    concurrency_max: int | None = None
    budgets: tuple[Budget, ...] = ()  # the key's own limits
    credential: str | None = None  # the client's own; local mode passes it on to models that have none


class Timings:
    """How long each stage took, for `server-timing`."""

    __slots__ = ("_entries", "_last_ns", "_started_ns", "_upstream_ns")

    def __init__(self) -> None:
        self._started_ns = self._last_ns = perf_counter_ns()
        self._upstream_ns = 0
        self._entries: list[str] = []

    def stop(self, name: str) -> None:
        """End the stage `name`, and begin the next."""
        now_ns = perf_counter_ns()
        duration_ns = now_ns - self._last_ns
        self._last_ns = now_ns
        if name == UPSTREAM:
            self._upstream_ns += duration_ns
        self._entries.append(f"{name};dur={duration_ns / 1e6:.3f}")

    @property
    def elapsed_ms(self) -> int:
        return (perf_counter_ns() - self._started_ns) // 1_000_000

    @property
    def overhead_us(self) -> int:
        """The time up to the end of the last stage, without the provider's share."""
        return (self._last_ns - self._started_ns - self._upstream_ns) // 1000

    def header(self) -> str:
        return ", ".join(self._entries)


@dataclass(slots=True)
class IntentTag:
    """The step's intent, as response headers and the usage event report it."""

    intent: str
    confidence: float
    source: str


@value_class
class Original:
    """A call's history before compression, its token count, and what condensing it with a model has cost so far."""

    messages: Sequence[Any]
    count: PromptCount
    model: str  # whose tokenizer counted it
    condensing_nano_usd: int = 0


@dataclass(slots=True)
class Call:
    """Created at the first stage and completed by the following ones. `id` is also the id of the reservation and of the usage event."""

    id: str
    protocol: WireProtocol
    principal: Principal
    request: Request
    tags: Tags = UNTAGGED
    run: str | None = None
    # The run whose budget this run also spends: named by this call, or by an earlier call of the run.
    parent_run: str | None = None
    model: str = ""  # the public name to call: the client's, or the one that routing chose
    timings: Timings = field(default_factory=Timings)
    forwarded_headers: Mapping[str, str] = field(default_factory=dict)
    intent: IntentTag | None = None
    count: PromptCount | None = None
    chain: Chain = field(default_factory=lambda: NO_CHAIN)
    deployment: Deployment | None = None
    price: Price | None = None
    grant: Granted | None = None
    # The chain's balances when the call was refused or settled; empty if the ledger has not reported any since the grant.
    reported_balances: tuple[Balance, ...] = ()
    output_cap: int | None = None  # the cap of each choice that is sent upstream; None leaves the client's own
    actions: list[str] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    original: Original | None = None
    saved: Amount = ZERO
    # The price of the requested model, if another one answers: savings are measured against it.
    requested_price: Price | None = None
    arm: Arm | None = None  # the run's side of the holdout; None: nothing is compared
    lane: Lane | None = None
    is_admitted: bool = False
    is_settled: bool = False  # or being settled
    is_with_upstream: bool = False  # a request is in flight at the provider: giving up now may still cost money
    raw: bytes = b""  # the body as received, until the loop breaker has seen it
    retry: int = 0  # how many times the client's SDK has already sent this call

    @property
    def holds_slices(self) -> bool:
        """Whether the hold grows with the answer. An answer that cannot be streamed cannot be watched, so it is held whole."""
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
