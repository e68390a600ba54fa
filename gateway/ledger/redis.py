"""The ledger for many gateway processes: Redis or Valkey, as one server, behind Sentinel, or a cluster.

Each operation is one Lua script (`lua/`), atomic over the whole chain of accounts. What a process remembers (the accounts of
a reservation) only saves a query: the script verifies it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final, Literal

import orjson

from gateway.ledger import checks, redis_outbox
from gateway.ledger import redis_scripts as scripts
from gateway.ledger.batches import BATCH_SIZE, batched, gather_all
from gateway.ledger.port import (
    EntryKind,
    ExpiredReservation,
    LedgerError,
    OutboxEntry,
    Progress,
    Rebuild,
    Reserve,
    Resolution,
)
from gateway.ledger.redis_connection import Argument
from gateway.ledger.redis_errors import port_error
from gateway.ledger.redis_projects import EPOCH_KEY, OUTBOX_SCAN_S, Project, Projects
from gateway.ledger.redis_server_checks import check_durability, check_servers
from gateway.ledger.redis_topology import make_topology, parse_url
from gateway.ledger.redis_values import (
    amount_at,
    amount_of_text,
    balance_at,
    balances_at,
    decision_of,
    demand_list,
    hold_lists,
    request_json,
    resolution_of,
    restored_decisions,
)
from gateway.ledger.retries import retry_while_unavailable
from policies.amounts import Amount, Limit
from policies.reservation import KEEP_MS, Balance, Decision, Demand, Gate, Granted, Hold, State

PROCESSES_KEY: Final = "farebox:processes"
# A process that was silent for this long does not count when an outage divides what is left.
_PROCESS_SILENT_MS: Final = 30_000


class RedisLedger:
    """`deadline_ms` bounds every operation. `rebuild` restores a project's counters if Redis does not have them (any more).

    `durability="strict"` demands `appendfsync always`, so that not even a power failure loses what was acknowledged.
    `clock_ms` replaces the clock of Redis in tests. What other processes wrote to the outbox is found within `scan_interval_s`.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline_ms: int = 100,
        allow_eviction: bool = False,
        durability: Literal["normal", "strict"] = "normal",
        rebuild: Rebuild | None = None,
        clock_ms: Callable[[], int] | None = None,
        scan_interval_s: float = OUTBOX_SCAN_S,
    ) -> None:
        self._topology = make_topology(parse_url(url), deadline_ms)
        self._allow_eviction = allow_eviction
        self._durability = durability
        self._clock_ms = clock_ms
        self._projects = Projects(
            self._topology, rebuild, deadline_ms=deadline_ms, scan_interval_s=scan_interval_s, clock_ms=clock_ms
        )
        self._process = secrets.token_hex(6)
        self._calls = count()
        self.warnings: tuple[str, ...] = ()

    async def open(self) -> None:
        """Connect and check that this Redis is fit to keep money; `warnings` lists what is not ideal.

        Raises `LedgerError`, which says what to do, if Redis would lose budgets, and `LedgerUnavailable` if it does not answer.
        """
        try:
            with port_error():
                infos = [reply.decode() for reply in await self._topology.call_all_primaries("INFO")]
                self.warnings = check_servers(infos, allow_eviction=self._allow_eviction)
                if self._durability == "strict":
                    check_durability(await self._topology.call_all_primaries("CONFIG", "GET", "appendfsync"))
            await self.epoch()
        except LedgerError:
            await self.close()
            raise

    async def close(self) -> None:
        await self._projects.close()
        await self._topology.close()

    async def ready(self, project: str) -> None:
        """Open the project for traffic, restoring its counters if Redis does not have them."""
        state = self._projects.of(project)
        if not state.epoch:
            with port_error():
                # Often the first request of a process, when all caches are cold: one slow answer is no outage.
                await retry_while_unavailable(lambda: self._projects.open(state), tries=2)

    async def now_ms(self) -> int:
        """The ledger's clock, in ms since the epoch."""
        if self._clock_ms is not None:
            return self._clock_ms()
        with port_error():
            seconds, micros = await self._topology.call(EPOCH_KEY, "TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def reserve(self, project: str, request: Reserve) -> Decision:
        checks.check_reserve(request)
        state = self._projects.of(project)
        accounts = tuple(hold.account for hold in request.holds)
        keys = state.chain(request.id, accounts)
        reply = await self._projects.run(state, scripts.RESERVE, keys, request_json(request), request.draft, request.id)
        decision = decision_of(reply, request.id, accounts)
        if reply[0] and isinstance(decision, Granted):
            state.remember_reservation(request.id, accounts, request.draft)
        return decision

    async def extend(self, project: str, reservation_id: str, holds: Sequence[Hold], extra: Demand) -> Decision:
        checks.check_holds(holds)
        checks.check_extra(extra)
        state = self._projects.of(project)
        accounts = tuple(hold.account for hold in holds)
        payload = orjson.dumps([demand_list(extra), hold_lists(holds)])
        keys = state.chain(reservation_id, accounts)
        reply = await self._projects.run(state, scripts.EXTEND, keys, payload, self._new_change_id())
        return decision_of(reply, reservation_id, accounts)

    async def renew(self, project: str, progress: Sequence[Progress], ttl_ms: int) -> tuple[str, ...]:
        checks.check_progress(progress, ttl_ms)
        state = self._projects.of(project)
        not_pending: list[str] = []
        for batch in batched(progress):
            keys = [state.meta, state.key("due"), *(state.key("hold", sign.id) for sign in batch)]
            payload = orjson.dumps([ttl_ms, [[sign.id, *sign.amount.values(), sign.on_lost or ""] for sign in batch]])
            reply = await self._projects.run(state, scripts.RENEW, keys, payload)
            not_pending.extend(name.decode() for name in reply[1])
        return tuple(not_pending)

    async def settle(self, project: str, reservation_id: str, used: Amount, detail: bytes) -> Resolution:
        checks.check_amount("used", used)
        payload = (orjson.dumps(used.values()), detail, self._new_change_id())
        state = self._projects.of(project)
        reservation = state.own_reservations.get(reservation_id)
        resolution = await self._resolve(project, scripts.SETTLE, reservation_id, payload)
        if reservation is not None and resolution.first and resolution.state is State.SETTLED:
            kind, at_ms = EntryKind.SETTLED, state.seen_ms
            entry = OutboxEntry(
                "", reservation_id, kind, project, used, at_ms, reservation.draft, detail, resolution.overrun
            )
            self._projects.remember_event(entry)
        return resolution

    async def void(self, project: str, reservation_id: str) -> Resolution:
        return await self._resolve(project, scripts.VOID, reservation_id, (self._new_change_id(),))

    async def book(self, project: str, request: Reserve, held: Amount, used: Amount, detail: bytes) -> Resolution:
        """Settle a reservation that Redis may have lost or never seen; then it is booked without checking whether it fits.

        For what was used while Redis was out of reach. `held` is what the caller set aside without Redis, and only determines
        the overrun. A reservation that Redis knows is settled as usual; the id makes retries safe for an hour.
        """
        checks.check_reserve(request)
        checks.check_amount("used", used)
        state = self._projects.of(project)
        accounts = tuple(hold.account for hold in request.holds)
        payload = (
            orjson.dumps(used.values()),
            detail,
            self._new_change_id(),
            request_json(request, held),
            request.draft,
        )
        keys = state.chain(request.id, accounts)
        reply = await self._projects.run(state, scripts.SETTLE, keys, request.id, *payload)
        state.own_reservations.pop(request.id, None)
        return resolution_of(reply, accounts)

    async def expire_due(self, limit: int = 1000) -> Sequence[ExpiredReservation]:
        """Resolve up to `limit` reservations of all projects whose deadline has been reached, by their `on_lost`."""
        now_ms = await self.now_ms()
        due: list[tuple[int, str, Project]] = []
        for batch in batched(await self._project_names()):
            due_by_project = await gather_all(
                self._due_reservations(self._projects.of(name), now_ms, limit) for name in batch
            )
            due.extend(reservation for reservations in due_by_project for reservation in reservations)
        due.sort(key=lambda reservation: reservation[:2])
        expired: list[ExpiredReservation] = []
        for due_batch in batched(due[:limit]):
            outcomes = await gather_all(
                self._expire(project, reservation_id) for _, reservation_id, project in due_batch
            )
            expired.extend(outcome for outcome in outcomes if outcome is not None)
        return expired

    async def record(self, project: str, entries: Sequence[OutboxEntry]) -> None:
        checks.check_entries(entries)
        await redis_outbox.record(self._projects, project, entries)

    async def balances(self, project: str, accounts: Sequence[str]) -> tuple[Balance, ...]:
        state = self._projects.of(project)
        keys = [state.meta, *state.account_keys(tuple(accounts))]
        return balances_at(await self._projects.run(state, scripts.BALANCES, keys), 1, accounts)

    async def set_override(self, project: str, account: str, limit: Limit) -> Balance:
        checks.check_limit(limit)
        return await self._set_on_account(project, scripts.OVERRIDE, account, orjson.dumps(limit.values()))

    async def set_gate(self, project: str, account: str, gate: Gate) -> Balance:
        return await self._set_on_account(project, scripts.GATE, account, gate.value.encode())

    async def current_run(self, project: str, workflow: str, candidate: str, silence_ms: int) -> str:
        checks.check_count("silence_ms", silence_ms)
        state = self._projects.of(project)
        keys = [state.meta, state.key("run", workflow), state.key("keep")]
        run: bytes = (await self._projects.run(state, scripts.CURRENT_RUN, keys, candidate, str(silence_ms)))[1]
        return run.decode()

    async def pending(self, project: str, limit: int = 1000) -> Sequence[tuple[str, str, Amount, int]]:
        state = self._projects.of(project)
        with port_error():
            ids = await self._topology.call(state.meta, "ZRANGE", state.key("due"), "0", str(limit - 1))
            rows: list[tuple[str, str, Amount, int]] = []
            for batch in batched(ids):
                hold_keys = [(name.decode(), state.key("hold", name.decode())) for name in batch]
                fields = ("owner", "held", "deadline_ms")
                replies = await gather_all(
                    self._topology.call(state.meta, "HMGET", key, *fields) for _, key in hold_keys
                )
                for (name, _), (owner, held, deadline_ms) in zip(hold_keys, replies, strict=True):
                    if deadline_ms is not None:
                        rows.append((name, owner.decode(), amount_of_text(held), int(deadline_ms)))
        return rows

    async def outbox_read(self, consumer: str, limit: int = 1000) -> Sequence[OutboxEntry]:
        return await redis_outbox.read(self._projects, consumer, limit)

    async def outbox_acknowledge(self, entries: Sequence[OutboxEntry]) -> None:
        await redis_outbox.acknowledge(self._projects, entries)

    async def outbox_size(self) -> int:
        return await redis_outbox.size(self._projects)

    async def restore(
        self,
        project: str,
        account: str,
        settled: Amount,
        keep_ms: int,
        gate: Gate | None = None,
        override: Limit | None = None,
    ) -> None:
        checks.check_amount("settled", settled)
        checks.check_count("keep_ms", keep_ms)
        if override is not None:
            checks.check_limit(override)
        state = self._projects.of(project)
        keys = [state.meta, state.key("keep"), state.key("account", account)]
        decisions = restored_decisions(gate, override)
        await self._projects.run(
            state, scripts.RESTORE, keys, orjson.dumps(settled.values()), str(keep_ms), "", *decisions
        )

    async def epoch(self) -> str:
        """An id that changes when Redis loses data of any project."""
        with port_error():
            await self._topology.call(EPOCH_KEY, "SET", EPOCH_KEY, secrets.token_hex(8), "NX")
            epoch: bytes = await self._topology.call(EPOCH_KEY, "GET", EPOCH_KEY)
        return epoch.decode()

    async def purge(self, limit: int = 1000) -> int:
        """Forget accounts, resolved reservations and implicit runs whose keep time is over. Returns how many."""
        now_ms = await self.now_ms()
        forgotten = 0
        for name in await self._project_names():
            if forgotten < limit:
                forgotten += await self._purge(self._projects.of(name), now_ms, limit - forgotten)
        return forgotten

    async def processes(self) -> int:
        """Announce this process as alive, and count those that did so lately."""
        now_ms = await self.now_ms()
        with port_error():
            call = self._topology.call
            await call(PROCESSES_KEY, "ZADD", PROCESSES_KEY, str(now_ms), self._process)
            await call(PROCESSES_KEY, "ZREMRANGEBYSCORE", PROCESSES_KEY, "-inf", str(now_ms - _PROCESS_SILENT_MS))
            process_count: int = await call(PROCESSES_KEY, "ZCARD", PROCESSES_KEY)
        return process_count

    async def _project_names(self) -> list[str]:
        with port_error():
            return await self._projects.names()

    def _new_change_id(self) -> str:
        """A name for one change, by which Redis recognises a retry after a lost reply."""
        return f"{self._process}-{next(self._calls)}"

    async def _resolve(
        self, project: str, script: scripts.Script, reservation_id: str, payload: tuple[Argument, ...]
    ) -> Resolution:
        state = self._projects.of(project)
        accounts = await self._accounts_of(state, reservation_id)
        reply = await self._projects.run(state, script, state.chain(reservation_id, accounts), reservation_id, *payload)
        state.own_reservations.pop(reservation_id, None)
        return resolution_of(reply, accounts)

    async def _accounts_of(self, project: Project, reservation_id: str) -> tuple[str, ...]:
        """The accounts of a reservation, from memory or from Redis; empty if it is unknown."""
        reservation = project.own_reservations.get(reservation_id)
        if reservation is not None:
            return reservation.accounts
        with port_error():
            names = await self._topology.call(project.meta, "HGET", project.key("hold", reservation_id), "accounts")
        return project.accounts_of_keys(names.decode()) if names else ()

    async def _due_reservations(self, project: Project, now_ms: int, limit: int) -> list[tuple[int, str, Project]]:
        # A project's ledger time may be ahead of the server's clock if that was set back.
        until_ms = max(now_ms, project.seen_ms)
        query = (project.key("due"), "-inf", str(until_ms), "WITHSCORES", "LIMIT", "0", str(limit))
        with port_error():
            ids_and_scores = await self._topology.call(project.meta, "ZRANGEBYSCORE", *query)
        return [
            (int(score), name.decode(), project)
            for name, score in zip(ids_and_scores[::2], ids_and_scores[1::2], strict=True)
        ]

    async def _expire(self, project: Project, reservation_id: str) -> ExpiredReservation | None:
        accounts = await self._accounts_of(project, reservation_id)
        reply = await self._projects.run(
            project, scripts.EXPIRE, project.chain(reservation_id, accounts), reservation_id
        )
        if not reply[0]:
            return None
        booked, held = amount_at(reply, 2), amount_at(reply, 5)
        return ExpiredReservation(reservation_id, project.name, reply[1].decode(), booked, held.excess_over(booked))

    async def _set_on_account(self, project: str, script: scripts.Script, account: str, value: bytes) -> Balance:
        state = self._projects.of(project)
        keys = [state.meta, state.key("keep"), state.key("account", account)]
        return balance_at(await self._projects.run(state, script, keys, value, str(KEEP_MS)), 1, account)

    async def _purge(self, project: Project, now_ms: int, limit: int) -> int:
        until_ms, index, forgotten = max(now_ms, project.seen_ms), project.key("keep"), 0
        while forgotten < limit:
            query = (index, "-inf", str(until_ms), "LIMIT", "0", str(min(BATCH_SIZE, limit - forgotten)))
            with port_error():
                keys = await self._topology.call(project.meta, "ZRANGEBYSCORE", *query)
            if not keys:
                break
            reply = await self._projects.run(
                project, scripts.PURGE, [project.meta, index, *(key.decode() for key in keys)]
            )
            forgotten += reply[1]
        return forgotten
