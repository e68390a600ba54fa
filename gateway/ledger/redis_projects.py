"""What a process knows of each project in Redis, and how a project is opened for traffic.

Each project has an epoch in its meta hash, and every script is given the epoch that the caller knows. If Redis was flushed or
came back with older data, the epoch is missing (or the time of the last write went back). From then on the project takes no
traffic until its counters are restored. One process restores them under a lock and opens the project with a new epoch; the
others wait for it. A new project is opened in the same way, with nothing to restore.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

import orjson
import structlog

from gateway.ledger.batches import batched
from gateway.ledger.port import CountersMissing, LedgerError, LedgerUnavailable, OutboxEntry, Rebuild, UnsavedEntries
from gateway.ledger.redis_connection import Argument, ConnectionLost, RedisReplyError, Reply
from gateway.ledger.redis_errors import as_port_error
from gateway.ledger.redis_scripts import ADOPT, FENCE, RECORD, RESTORE, Script
from gateway.ledger.redis_topology import Topology
from gateway.ledger.redis_values import entry_arguments, entry_of, restored_decisions
from gateway.tasks import cancel
from policies.amounts import Amount, Limit
from policies.reservation import Gate

EPOCH_KEY: Final = "farebox:epoch"
PROJECTS_KEY: Final = "farebox:projects"
# The restoring process renews its lock in time; if it dies, another takes over after this.
_LOCK_MS: Final = 10_000
_LOCK_POLL_S: Final = 0.05
# How often a reader looks at the outboxes of all projects.
OUTBOX_SCAN_S: Final = 1.0
# How long calls wait for their project to be opened, in deadlines. If this process's event loop is busy, as when a crowd
# comes to a new gateway, each deadline takes longer; a single long timeout would be over by then.
_OPENING_DEADLINES: Final = 10
# The accounts of this many reservations are cached; those of older ones are read from Redis.
_REMEMBERED_MAX: Final = 100_000

# The events of the last seconds or minutes, some 10 MB at most.
_RECENT_MAX: Final = 10_000
_UNSAVED_BATCH: Final = 1_000
NO_EPOCH: Final = "*"
# A retry may meet the next trouble (a restart: connection lost, then NOSCRIPT, then a lost epoch), but not more.
_RETRIES_MAX: Final = 3
_EPOCH_ERRORS: Final = frozenset({"FAREBOX_EPOCH", "FAREBOX_LOST", "FAREBOX_ROLLBACK"})

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OwnReservation:
    """What a process remembers of a reservation that it made."""

    accounts: tuple[str, ...]
    draft: bytes


@dataclass(slots=True)
class Project:
    """The keys and the known state of one project. All its keys share a hash tag, so that a cluster keeps them on one node."""

    name: str
    epoch: str = ""
    # The latest write time that this process has seen; Redis must never be behind it.
    seen_ms: int = 0
    own_reservations: dict[str, OwnReservation] = field(default_factory=dict)  # unresolved reservations of this process
    tag: str = ""

    def __post_init__(self) -> None:
        # Quoted, because a brace in the name would end the hash tag early.
        self.tag = f"farebox:{{{quote(self.name, safe='._:@/-')}}}:"

    @property
    def meta(self) -> str:
        return f"{self.tag}meta"

    def key(self, kind: str, name: str = "") -> str:
        return f"{self.tag}{kind}:{name}" if name else self.tag + kind

    def account_keys(self, accounts: tuple[str, ...]) -> list[str]:
        prefix = f"{self.tag}account:"
        return [prefix + account for account in accounts]

    def chain(self, reservation_id: str, accounts: tuple[str, ...]) -> list[str]:
        """The keys of a script for one reservation, in the order given in resolution.lua."""
        tag = self.tag
        return [
            f"{tag}meta",
            f"{tag}hold:{reservation_id}",
            f"{tag}due",
            f"{tag}outbox",
            f"{tag}keep",
            *self.account_keys(accounts),
        ]

    def accounts_of_keys(self, joined: str) -> tuple[str, ...]:
        """The account names from the keys, one per line, in a reservation's hash."""
        prefix = len(f"{self.tag}account:")
        return tuple(key[prefix:] for key in joined.split("\n"))

    def remember_reservation(self, reservation_id: str, accounts: tuple[str, ...], draft: bytes) -> None:
        if len(self.own_reservations) >= _REMEMBERED_MAX:
            # Dicts keep their order: the first is the oldest, and most likely of a call that will never be settled.
            del self.own_reservations[next(iter(self.own_reservations))]
        self.own_reservations[reservation_id] = OwnReservation(accounts, draft)


@dataclass(frozen=True, slots=True)
class _Opening:
    """`work` goes on until it is done. Calls wait for `wait`, which ends with it or after a timeout."""

    work: asyncio.Task[None]
    wait: asyncio.Task[None]


class Projects:
    """All projects that this process has used, and the scripts that run on them."""

    def __init__(
        self,
        topology: Topology,
        rebuild: Rebuild | None,
        *,
        deadline_ms: int,
        scan_interval_s: float,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.topology = topology
        self.scan_interval_s = scan_interval_s
        self.outboxes_scanned_s = -math.inf  # when the outboxes of all projects were checked
        self.active: set[str] = set()  # projects that may have got an event since their outbox was checked
        self._rebuild = rebuild
        self._deadline_s = deadline_ms / 1000
        self._clock_ms = clock_ms
        self._known: dict[str, Project] = {}
        self._opening: dict[str, _Opening] = {}
        self._recent: deque[OutboxEntry] = deque(maxlen=_RECENT_MAX)

    def remember_event(self, entry: OutboxEntry) -> None:
        """Remember a written event: if Redis loses its outbox before the store has the event, it is written again."""
        self._recent.append(entry)

    def of(self, name: str) -> Project:
        project = self._known.get(name)
        if project is None:
            if not name:
                raise LedgerError("a project needs a name")
            project = self._known[name] = Project(name)
        return project

    async def run(self, project: Project, script: Script, keys: Sequence[str], *arguments: Argument) -> Reply:
        """Run a script of this project. The first argument is always the epoch; the reply begins with the time of the write, or 0."""
        try:
            if not project.epoch:
                await self.open(project)
            reply = await self._evaluate(script, keys, project.epoch, project.seen_ms, arguments)
        except (ConnectionLost, RedisReplyError) as error:
            reply = await self._retry(project, script, keys, arguments, error)
        finally:
            # Even if the reply was lost, because the event may have been written.
            self.active.add(project.name)
        if reply[0] > project.seen_ms:
            project.seen_ms = reply[0]
        return reply

    async def _retry(
        self, project: Project, script: Script, keys: Sequence[str], arguments: tuple[Argument, ...], error: Exception
    ) -> Reply:
        """Retry after trouble that a retry can overcome. The ids and names in the arguments make it idempotent."""
        try:
            async with asyncio.timeout(self._deadline_s):
                for _ in range(_RETRIES_MAX):
                    try:
                        await self._recover(project, error)
                        return await self._evaluate(script, keys, project.epoch, project.seen_ms, arguments)
                    except (ConnectionLost, RedisReplyError) as next_error:
                        error = next_error
        except TimeoutError:
            if isinstance(error, RedisReplyError) and error.code in _EPOCH_ERRORS:
                raise CountersMissing(f"the counters of project {project.name!r} are being restored") from error
            raise LedgerUnavailable("Redis did not answer in time") from error
        raise as_port_error(error) if isinstance(error, RedisReplyError) else error

    async def _recover(self, project: Project, error: Exception) -> None:
        if isinstance(error, RedisReplyError):
            if error.code not in _EPOCH_ERRORS:
                raise as_port_error(error)
            if error.code == "FAREBOX_ROLLBACK":
                await self._evaluate(FENCE, [project.meta], project.epoch, 0, ())
            await self.open(project)

    async def _evaluate(
        self, script: Script, keys: Sequence[str], epoch: str, seen_ms: int, arguments: tuple[Argument, ...]
    ) -> Reply:
        clock = "" if self._clock_ms is None else str(self._clock_ms())
        call = self.topology.call
        eval_arguments = (len(keys), *keys, epoch, seen_ms, clock, *arguments)
        try:
            return await call(keys[0], "EVALSHA", script.sha, *eval_arguments)
        except RedisReplyError as reply_error:
            if reply_error.code != "NOSCRIPT":
                raise
            # The server has restarted, or never saw this version of the script. EVAL also loads it for the next time.
            return await call(keys[0], "EVAL", script.text, *eval_arguments)

    async def names(self) -> list[str]:
        """All projects that any process has opened."""
        return sorted(name.decode() for name in await self.topology.call(PROJECTS_KEY, "SMEMBERS", PROJECTS_KEY))

    async def close(self) -> None:
        for opening in self._opening.values():
            opening.work.cancel()
        tasks = [task for opening in self._opening.values() for task in (opening.work, opening.wait)]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._opening.clear()

    async def open(self, project: Project) -> None:
        """Learn the project's epoch, first restoring the project if Redis does not know it.

        Raises `CountersMissing` if that takes too long, and at once for later calls. The restoration goes on, and a later
        call finds it done.
        """
        opening = self._opening.get(project.name)
        if opening is None or opening.work.done():
            work = asyncio.create_task(self._open(project))
            opening = self._opening[project.name] = _Opening(
                work, asyncio.create_task(self._wait_until_open(work, project))
            )
            # The waiting callers read the outcome; if all of them gave up, nobody does.
            for task in (opening.work, opening.wait):
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(opening.wait)

    async def _wait_until_open(self, work: asyncio.Task[None], project: Project) -> None:
        for _ in range(_OPENING_DEADLINES):
            if (await asyncio.wait([work], timeout=self._deadline_s))[0]:
                return work.result()
        raise CountersMissing(f"the counters of project {project.name!r} are being restored")

    async def _open(self, project: Project) -> None:
        was_known = bool(project.epoch)
        while True:
            epoch = await self.topology.call(project.meta, "HGET", project.meta, "epoch")
            if epoch or await self._restore_or_create(project, was_known):
                break
            await asyncio.sleep(_LOCK_POLL_S)
        if epoch and self._use_epoch(project, epoch) and was_known:
            # Another process has restored the counters, but could not know what we wrote last.
            await self._rewrite_recent_events(project)
        # Before any process's first operation on this project, so that no sweeper can miss it.
        await self.topology.call(PROJECTS_KEY, "SADD", PROJECTS_KEY, project.name)

    def _use_epoch(self, project: Project, epoch: bytes) -> bool:
        """Use the epoch. Returns whether it is a new one."""
        if epoch.decode() == project.epoch:
            return False
        project.epoch, project.seen_ms = epoch.decode(), 0
        return True

    async def _rewrite_recent_events(self, project: Project) -> None:
        """The store may have some of them already, which their ids make harmless."""
        own_events = [entry for entry in self._recent if entry.project == project.name]
        for batch in batched(own_events):
            keys = [project.meta, project.key("outbox")]
            await self._evaluate(RECORD, keys, NO_EPOCH, 0, tuple(entry_arguments(batch)))

    async def _restore_or_create(self, project: Project, was_known: bool) -> bool:
        """Open a project that Redis does not know. False: another process is doing it."""
        if self._rebuild is None:
            await self._announce_loss(project, was_known)
            await self._rewrite_recent_events(project)
            self._use_epoch(project, await self._adopt(project, ""))
            return True
        token = secrets.token_hex(8)
        lock = project.key("rebuild")
        if not await self.topology.call(lock, "SET", lock, token, "NX", "PX", str(_LOCK_MS)):
            return False
        await self._announce_loss(project, was_known)
        async with self._renewed_lock(lock, token):
            await self._rewrite_recent_events(project)
            await self._restore_accounts(project, self._rebuild, token)
            try:
                self._use_epoch(project, await self._adopt(project, token))
            except RedisReplyError:
                return False
        return True

    async def _restore_accounts(self, project: Project, rebuild: Rebuild, token: str) -> None:
        async def restore(
            account: str, settled: Amount, keep_ms: int, gate: Gate | None = None, override: Limit | None = None
        ) -> None:
            keys = [project.meta, project.key("keep"), project.key("account", account), project.key("rebuild")]
            arguments = (orjson.dumps(settled.values()), str(keep_ms), token, *restored_decisions(gate, override))
            await self._evaluate(RESTORE, keys, NO_EPOCH, 0, arguments)

        try:
            await rebuild(project.name, restore, self._unsaved_entries(project))
        except Exception as error:
            # Whatever the store raises, for a call it means that the sums are not known yet.
            _log.error("counters_not_restored", project=project.name, error=str(error))
            raise CountersMissing(f"the counters of project {project.name!r} cannot be restored: {error}") from error

    async def _unsaved_entries(self, project: Project) -> UnsavedEntries:
        """Includes entries leased by another process: if it died, no one else would find them until the lease ends."""
        key, start = project.key("outbox"), "-"
        while records := await self.topology.call(key, "XRANGE", key, start, "+", "COUNT", str(_UNSAVED_BATCH)):
            yield [entry_of(project.name, position, fields) for position, fields in records]
            start = f"({records[-1][0].decode()}"

    async def _adopt(self, project: Project, token: str) -> bytes:
        keys = [project.meta, project.key("rebuild")]
        epoch: bytes = (await self._evaluate(ADOPT, keys, NO_EPOCH, 0, (secrets.token_hex(8), token)))[0]
        return epoch

    async def _announce_loss(self, project: Project, was_known: bool) -> None:
        """Change the ledger's epoch if data was lost, but not for a new project."""
        if was_known or await self.topology.call(PROJECTS_KEY, "SISMEMBER", PROJECTS_KEY, project.name):
            await self.topology.call(EPOCH_KEY, "SET", EPOCH_KEY, secrets.token_hex(8))

    @contextlib.asynccontextmanager
    async def _renewed_lock(self, lock: str, token: str) -> AsyncIterator[None]:
        """Renew the lock while it is needed, and release it, so that after a failure nobody has to wait for it to expire."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(_LOCK_MS / 3000)
                with contextlib.suppress(LedgerUnavailable):
                    await self.topology.call(lock, "PEXPIRE", lock, str(_LOCK_MS))

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            await cancel(task)
            with contextlib.suppress(LedgerUnavailable):
                if await self.topology.call(lock, "GET", lock) == token.encode():
                    await self.topology.call(lock, "DEL", lock)
