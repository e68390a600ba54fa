"""A real cluster of three nodes, and a primary behind Sentinel: projects on every node, moving slots, failovers."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.ledger.port import LedgerUnavailable
from gateway.ledger.redis import RedisLedger
from gateway.ledger.redis_connection import RedisReplyError
from gateway.ledger.redis_topology import Cluster, parse_url, slot_of
from policies.reservation import Granted
from tests.faults.redis_ledgers import (
    LONG_DEADLINE_MS,
    ledger_at,
    reserve_request,
    retry_until_available,
    settled_and_reserved,
    tokens,
)
from tests.redis_server import SLOTS, RedisCluster, RedisServer, running_cluster


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RedisCluster]:
    try:
        with running_cluster() as cluster:
            yield cluster
    except FileNotFoundError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def cluster(shared_cluster: RedisCluster) -> RedisCluster:
    for node in shared_cluster.nodes:
        node.command("FLUSHALL")
    return shared_cluster


@pytest.fixture
async def ledger(cluster: RedisCluster) -> AsyncIterator[RedisLedger]:
    async with ledger_at(cluster.url) as opened:
        yield opened


def project_on(node: int) -> str:
    """A project whose keys live on this node."""
    for number in range(1_000):
        name = f"project-{number}"
        if slot_of(f"farebox:{{{name}}}:meta") * 3 // SLOTS == node:
            return name
    raise AssertionError("no name found")


PROJECTS = [project_on(node) for node in range(3)]


async def test_projects_on_every_node_are_reserved_settled_swept_and_flushed(
    cluster: RedisCluster, ledger: RedisLedger
) -> None:
    for project in PROJECTS:
        assert isinstance(await ledger.reserve(project, reserve_request("c1")), Granted)
        assert (await ledger.settle(project, "c1", tokens(4), b"{}")).first
        assert await settled_and_reserved(ledger, project=project) == (4, 0)
        await ledger.reserve(project, reserve_request("c2", ttl_ms=0))
    assert {expired.project for expired in await ledger.expire_due()} == set(PROJECTS)
    entries = await ledger.outbox_read("f")
    assert len(entries) == await ledger.outbox_size() == 6
    await ledger.outbox_acknowledge(entries)
    assert await ledger.outbox_size() == 0
    for node, project in zip(cluster.nodes, PROJECTS, strict=True):
        assert f"{{{project}}}:account:run:r" in node.command("KEYS", "*")


async def test_all_keys_of_a_project_share_a_slot(cluster: RedisCluster, ledger: RedisLedger) -> None:
    project = "odd {name} of } a project"
    await ledger.reserve(project, reserve_request("c1"))
    await ledger.settle(project, "c1", tokens(4), b"{}")
    await ledger.current_run(project, "w", "r", 1_000)
    await ledger.outbox_read("f")
    keys = {
        word
        for node in cluster.nodes
        for word in node.command("KEYS", "*").split("\r\n")
        if word.startswith("farebox:{")
    }
    assert len(keys) >= 7
    assert len({slot_of(key) for key in keys}) == 1


async def test_moved_slot_is_followed_and_nothing_is_done_twice(cluster: RedisCluster, ledger: RedisLedger) -> None:
    project = PROJECTS[0]
    await ledger.reserve(project, reserve_request("c1"))
    slot = slot_of(f"farebox:{{{project}}}:meta")
    source, target = cluster.nodes[0], cluster.nodes[1]
    source_id, target_id = (node.command("CLUSTER", "MYID").split("\r\n")[1] for node in (source, target))
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    # Half moved: every operation either works or is unavailable; nothing is done twice.
    keys = [word for word in source.command("CLUSTER", "GETKEYSINSLOT", slot, 100).split("\r\n") if "farebox" in word]
    for key in keys:
        assert "+OK" in source.command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        with contextlib.suppress(LedgerUnavailable):
            await ledger.settle(project, "c1", tokens(4), b"{}")
    for node in (target, source, cluster.nodes[2]):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
    try:
        done = await ledger.settle(project, "c1", tokens(4), b"{}")
        assert done.booked == tokens(4)
        assert isinstance(await ledger.reserve(project, reserve_request("c2")), Granted)
        assert await settled_and_reserved(ledger, project=project) == (4, 10)
        assert await ledger.outbox_size() == 1
    finally:
        target.command("FLUSHALL")
        for node in (source, target, cluster.nodes[2]):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", source_id)


async def test_nodes_redirecting_to_each_other_end_in_unavailable(cluster: RedisCluster) -> None:
    """Two nodes redirect the caller to each other."""
    topology = Cluster(parse_url(cluster.url), LONG_DEADLINE_MS)
    first, second = ((f"127.0.0.1:{node.port}") for node in cluster.nodes[:2])

    class RedirectingConnection:
        def __init__(self, other: str) -> None:
            self.other = other

        async def call(self, *arguments: object) -> object:
            raise RedisReplyError(f"MOVED 1 {self.other}")

        def drop(self) -> None:
            pass

        async def close(self) -> None:
            pass

    await topology.call("farebox:{x}:meta", "GET", "farebox:{x}:meta")
    for node, other in ((0, second), (1, first), (2, first)):
        address = ("127.0.0.1", cluster.nodes[node].port)
        if address in topology._connections:
            await topology._connections[address].close()
        topology._connections[address] = RedirectingConnection(other)  # type: ignore[assignment]
    with pytest.raises(LedgerUnavailable, match="disagree"):
        await topology.call("farebox:{x}:meta", "GET", "farebox:{x}:meta")
    await topology.close()


async def test_flushed_node_rebuilds_only_its_own_projects(cluster: RedisCluster) -> None:
    rebuilt: list[str] = []

    async def rebuild(project: str, restore: object, unsaved: object) -> None:
        rebuilt.append(project)

    async with ledger_at(cluster.url, rebuild=rebuild) as ledger:
        for project in PROJECTS:
            await ledger.reserve(project, reserve_request("c1"))
        before = await ledger.epoch()
        rebuilt.clear()
        cluster.nodes[2].command("FLUSHALL")
        for project in PROJECTS:
            await ledger.reserve(project, reserve_request("c2"))
        assert rebuilt == [PROJECTS[2]]
        assert await ledger.epoch() != before
        assert await settled_and_reserved(ledger, project=PROJECTS[0]) == (0, 20)


async def test_down_node_makes_only_its_own_projects_unavailable(cluster: RedisCluster, ledger: RedisLedger) -> None:
    for project in PROJECTS:
        await ledger.reserve(project, reserve_request("c1"))
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    cluster.nodes[2].kill()
    try:
        with pytest.raises(LedgerUnavailable):
            await ledger.reserve(PROJECTS[2], reserve_request("c2"))
        assert isinstance(await ledger.reserve(PROJECTS[0], reserve_request("c2")), Granted)
    finally:
        cluster.nodes[2].start()
        for node in cluster.nodes:
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    decision = await retry_until_available(lambda: ledger.reserve(PROJECTS[2], reserve_request("c2")), within_s=30)
    assert isinstance(decision, Granted)
    assert await settled_and_reserved(ledger, project=PROJECTS[2]) == (0, 20)


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A primary, its replica, and a Sentinel that promotes within a second or two."""
    with contextlib.ExitStack() as stack:
        try:
            primary, replica = RedisServer(), RedisServer()
            for server in (primary, replica):
                stack.callback(server.remove)
                server.start()
            replica.command("REPLICAOF", "127.0.0.1", primary.port)
            watcher = RedisServer(as_sentinel=True)
            stack.callback(watcher.remove)
            watcher.start()
        except FileNotFoundError as lacking:
            pytest.skip(str(lacking))
        watcher.command("SENTINEL", "MONITOR", "budget", "127.0.0.1", primary.port, 1)
        for name, value in {"down-after-milliseconds": 500, "failover-timeout": 3000}.items():
            watcher.command("SENTINEL", "SET", "budget", name, value)
        yield primary, replica, watcher


def has_replicated_everything(primary: RedisServer) -> bool:
    """`WAIT` would not tell: it waits for the writes of its own connection only, and this one has made none."""
    info = primary.command("INFO", "replication")
    acknowledged = re.search(r"^slave0:.*state=online,offset=(\d+)", info, re.MULTILINE)
    written = re.search(r"^master_repl_offset:(\d+)", info, re.MULTILINE)
    return acknowledged is not None and written is not None and acknowledged[1] == written[1]


async def test_settlement_survives_a_sentinel_failover(sentinel: tuple[RedisServer, RedisServer, RedisServer]) -> None:
    primary, replica, watcher = sentinel
    async with ledger_at(f"redis+sentinel://127.0.0.1:{watcher.port}/budget") as ledger:
        await ledger.reserve("p", reserve_request("c1"))
        async with asyncio.timeout(20):
            # A replica that lags behind, or still waits for its first copy, would be promoted without the reservation.
            while not has_replicated_everything(primary) or (
                "num-slaves\r\n$1\r\n1" not in watcher.command("SENTINEL", "MASTER", "budget")
            ):
                await asyncio.sleep(0.1)
        primary.kill()
        done = await retry_until_available(lambda: ledger.settle("p", "c1", tokens(6), b"{}"), within_s=60)
        # `first` is not checked: an earlier attempt may have succeeded without its reply.
        assert done.booked == tokens(6)
        assert "role:master" in replica.command("INFO", "replication")
        assert await settled_and_reserved(ledger) == (6, 0)


async def test_primary_unknown_to_sentinel_is_unavailable(
    sentinel: tuple[RedisServer, RedisServer, RedisServer],
) -> None:
    with pytest.raises(LedgerUnavailable, match="no Sentinel knows the primary 'other'"):
        async with ledger_at(f"redis+sentinel://127.0.0.1:{sentinel[2].port}/other"):
            pass


async def test_demoted_primary_is_not_used(sentinel: tuple[RedisServer, RedisServer, RedisServer]) -> None:
    """Sentinel still names a server that has become a replica: the ledger does not use it."""
    primary, replica, watcher = sentinel
    primary.command("REPLICAOF", "127.0.0.1", replica.port)
    with pytest.raises(LedgerUnavailable, match=r"not the primary|replica"):
        async with ledger_at(f"redis+sentinel://127.0.0.1:{watcher.port}/budget"):
            pass
