"""Explains what would happen to a call, by the pipeline's own admission on a dry-run ledger. A dry run: nothing is sent,
reserved, asked, recorded or remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.errors import GatewayError, LedgerOutage
from gateway.ledger.dry_run_ledger import DryRunLedger
from gateway.ledger.port import LedgerUnavailable
from gateway.orchestration.dry_run import DryRunPlanner
from gateway.pipeline.assembly import admission_for
from gateway.pipeline.call import Call, Principal
from gateway.pipeline.intake import check_model
from gateway.pipeline.reserving import Reserving
from gateway.runs.view import own_budget
from gateway.store import runs as run_store
from gateway.store.database import StoreError
from gateway.tags import read_tags
from gateway.wire.protocol import WireProtocol
from policies.amounts import Limit
from policies.budgets import Link, run_account
from policies.reservation import Balance

if TYPE_CHECKING:
    from gateway.parts import Parts

# The run that the call would begin, if it names none and none is known here.
NEW_RUN: Final = "implicit-new"


@dataclass(slots=True)
class Explained:
    """`call` is None for a request that is refused before anything is decided. `standing` has the accounts before the call,
    with the limits in force."""

    planner: DryRunPlanner
    call: Call | None = None
    prompt_tokens: int | None = None  # of the original prompt, counted for the model that would be asked
    error: GatewayError | None = None
    standing: Sequence[tuple[Link, Balance]] = field(default=())


async def explain(
    parts: Parts, principal: Principal, protocol: WireProtocol, raw: bytes, headers: Mapping[str, str]
) -> Explained:
    """Raises no `GatewayError`: the explanation contains what the caller would be told."""
    found = Explained(DryRunPlanner(parts.orchestration))
    try:
        call = found.call = _call_of(parts, principal, protocol, raw, headers)
        await _admit(parts, call, found)
    except LedgerUnavailable:
        found.error = LedgerOutage()
    except GatewayError as error:
        found.error = error
    return found


def _call_of(
    parts: Parts, principal: Principal, protocol: WireProtocol, raw: bytes, headers: Mapping[str, str]
) -> Call:
    """The call as the intake would make it."""
    request = protocol.parse(raw)
    call = Call(id=parts.ids.new(), protocol=protocol, principal=principal, request=request)
    call.tags = read_tags(headers, {}, request.metadata, principal.defaults)
    check_model(request.model, principal, lambda name: bool(parts.pool.of(name)))
    workflow = call.tags.workflow
    if workflow is not None:
        call.run = call.tags.run or parts.runs.last_implicit(principal.project, workflow) or NEW_RUN
    return call


async def _admit(parts: Parts, call: Call, found: Explained) -> None:
    dry_run_ledger = DryRunLedger(parts.ledger, await _overrides(parts, call))
    runs = parts.runs.dry_run_copy(dry_run_ledger)
    reserving = Reserving(dry_run_ledger, local=None, runs=runs, is_outbox_full=lambda: parts.flusher.is_full)
    admission = admission_for(
        parts, reserving, ledger=dry_run_ledger, planner=found.planner, runs=runs, sleep=_without_waiting
    )
    try:
        await admission.admit(call)
    finally:
        admission.release_deployment(call)
        found.prompt_tokens = await found.planner.original_tokens(call)
        found.standing = await _standing(call, dry_run_ledger)


async def _standing(call: Call, dry_run_ledger: DryRunLedger) -> Sequence[tuple[Link, Balance]]:
    links = call.chain.links
    await dry_run_ledger.void(call.principal.project, call.id)
    balances = await dry_run_ledger.balances(call.principal.project, [link.hold.account for link in links])
    return [
        (link, dry_run_ledger.with_effective_limit(call.principal.project, link.hold, balance))
        for link, balance in zip(links, balances, strict=True)
    ]


async def _overrides(parts: Parts, call: Call) -> Mapping[str, Limit]:
    """The budgets that people gave this run, from the store; empty if that is unreachable."""
    if call.run is None:
        return {}
    try:
        run = await run_store.get(parts.store, call.principal.project, call.run)
    except StoreError:
        return {}
    return {run_account(call.run): own_budget(run.plan)} if run is not None else {}


async def _without_waiting(_seconds: float) -> None:
    """Waiting cannot change anything on a dry-run ledger."""
