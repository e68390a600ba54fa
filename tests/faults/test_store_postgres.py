"""Postgres becomes unreachable, breaks during COMMIT, locks rows, or is behind a pooler."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from gateway.bookkeeping.flusher import Flusher
from gateway.control import Control
from gateway.ledger.memory import MemoryLedger
from gateway.store import keys, partitions, runs, settings, usage, usage_report, versions
from gateway.store.database import Database, StoreUnavailable
from gateway.store.keys import KeyRequest
from gateway.store.runs import RunFilter
from gateway.store.usage_report import GroupBy, UsageFilter
from tests.faults.postgres_proxies import PostgresProxy, postgres_proxy, transaction_pooler
from tests.postgres_server import execute
from tests.store_events import NOW_MS, entry, rows_of
from tests.waiting import eventually

pytest_plugins = ("tests.store_fixtures",)


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[PostgresProxy]:
    async with postgres_proxy(postgres_url) as started:
        yield started


@pytest.fixture
async def db(proxy: PostgresProxy) -> AsyncIterator[Database]:
    database = Database(proxy.url)
    await database.open()
    yield database
    await database.close()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_connection_broken_in_commit_stores_each_event_once(
    db: Database, proxy: PostgresProxy, moment: str
) -> None:
    batch = [entry(f"e{number}") for number in range(10)]
    proxy.cut_at_commit = moment  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable):
        await usage.insert_entries(db, batch, NOW_MS)
    done = await usage.insert_entries(db, batch, NOW_MS)
    assert (done.inserted, done.known) == ((10, 0) if moment == "before" else (0, 10))
    assert len(await rows_of(db)) == 10
    run = await runs.get(db, "default", "r1")
    assert run is not None
    assert (run.sums.calls, run.sums.total_tokens) == (10, 1500)


async def test_postgres_without_a_free_connection_says_what_to_do_until_there_is_one(postgres_url: str) -> None:
    role = f"limited_{secrets.token_hex(4)}"
    await execute(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD 'pw' CONNECTION LIMIT 0")
    try:
        database = Database(make_url(postgres_url).set(username=role, password="pw").render_as_string(False))
        await database.open()
        try:
            with pytest.raises(
                StoreUnavailable, match=r"too many connections .*\. Each gateway process opens up to 8: raise"
            ):
                await database.schema_revision()
            await execute(postgres_url, f"ALTER ROLE {role} CONNECTION LIMIT -1")
            async with database.begin() as connection:
                assert (await connection.execute(text("SELECT 1"))).scalar() == 1
        finally:
            await database.close()
    finally:
        await execute(postgres_url, f"DROP ROLE {role}")


async def test_outage_is_buffered_reported_and_flushed_after_recovery(db: Database, proxy: PostgresProxy) -> None:
    ledger = MemoryLedger()
    flusher = Flusher(ledger, db, consumer="one", outbox_cap=50, idle_ms=10, random_share=lambda: 0.0)
    task = asyncio.create_task(flusher.run())
    await ledger.record("default", [entry("before")])
    await eventually(lambda: flusher.inserted_total == 1)
    proxy.cut()
    await ledger.record("default", [entry(f"e{number}") for number in range(45)])
    await eventually(lambda: flusher.is_nearly_full)
    assert (flusher.is_full, flusher.is_store_available) == (False, False)
    assert flusher.last_error.startswith("The store cannot be reached")
    await ledger.record("default", [entry(f"f{number}") for number in range(5)])
    await eventually(lambda: flusher.is_full)
    assert flusher.lag_ms > 0
    proxy.restore()
    await eventually(lambda: flusher.outbox_size == 0 and flusher.inserted_total == 51)
    assert flusher.lag_ms == 0
    assert flusher.is_store_available
    assert not flusher.is_full
    assert await flusher.stop()
    await task
    assert len(await rows_of(db)) == 51


async def more_is_inserted(flusher: Flusher) -> None:
    before = flusher.inserted_total
    await eventually(lambda: flusher.inserted_total > before, 60)


async def test_120000_buffered_events_are_stored_once_despite_cuts(db: Database, proxy: PostgresProxy) -> None:
    """Ten minutes of an outage at 200 calls a second: 120,000 events. While they are flushed, the connection is cut three more times."""
    ledger, runs_seen = MemoryLedger(), 500
    flusher = Flusher(ledger, db, consumer="one", outbox_cap=200_000, idle_ms=10, random_share=lambda: 0.0)
    proxy.cut()
    for start in range(0, 120_000, 1_000):
        numbers = range(start, start + 1_000)
        await ledger.record("default", [entry(f"e{number}", run=f"r{number % runs_seen}") for number in numbers])
    task = asyncio.create_task(flusher.run())
    await eventually(lambda: flusher.outbox_size == 120_000 and not flusher.is_store_available)
    for _ in range(3):
        proxy.restore()
        await more_is_inserted(flusher)
        proxy.cut()
    proxy.restore()
    await eventually(lambda: flusher.outbox_size == 0, 100)
    assert flusher.lag_ms == 0
    assert await flusher.stop()
    await task
    async with db.read() as connection:
        rows = (await connection.execute(text("SELECT count(*), count(DISTINCT id) FROM token_usage"))).one()
        calls = (await connection.execute(text("SELECT sum(calls) FROM runs"))).scalar()
    assert (*rows, calls) == (120_000, 120_000, 120_000)


async def test_three_flushers_store_each_event_once_despite_cuts(postgres_url: str) -> None:
    ledger = MemoryLedger()
    await ledger.record("default", [entry(f"e{number}", run=f"r{number % 9}") for number in range(600)])
    async with postgres_proxy(postgres_url) as proxy:
        stores = [Database(proxy.url) for _ in range(3)]
        for store in stores:
            await store.open()
        flushers = [
            Flusher(ledger, store, consumer=f"f{number}", batch=40, idle_ms=5, random_share=lambda: 0.0)
            for number, store in enumerate(stores)
        ]
        tasks = [asyncio.create_task(flusher.run()) for flusher in flushers]
        for _ in range(3):
            await asyncio.sleep(0.15)
            proxy.cut()
            await asyncio.sleep(0.05)
            proxy.restore()
        for _ in range(1000):
            if await ledger.outbox_size() == 0:
                break
            await asyncio.sleep(0.02)
        for flusher in flushers:
            await flusher.stop(0)
        await asyncio.gather(*tasks)
        assert await ledger.outbox_size() == 0
        assert len(await rows_of(stores[0])) == 600
        page = await runs.list_runs(stores[0], RunFilter(), 20)
        assert sum(run.sums.total_tokens for run in page.runs) == 600 * 150
        for store in stores:
            await store.close()


async def test_id_lookup_uses_the_primary_key_without_table_statistics(postgres_url: str, db: Database) -> None:
    """Otherwise each batch would read all rows of the month, because a table without statistics seems to be small."""
    for start in range(0, 3_000, 1_000):
        batch = [entry(f"e{number}", run=f"r{number % 9}") for number in range(start, start + 1_000)]
        assert (await usage.insert_entries(db, batch, NOW_MS)).inserted == 1_000
    assert (await usage.insert_entries(db, batch, NOW_MS)).known == 1_000
    await db.close()  # closing the connection publishes its statistics
    other = Database(postgres_url)
    await other.open()
    month = partitions.partition_name(partitions.month_of(NOW_MS))
    async with other.begin() as connection:
        by_table = text(f"SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = '{month}'")
        by_index = text(f"SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes WHERE relname = '{month}'")
        for _ in range(200):
            read = dict(map(tuple, await connection.execute(by_index)))
            if read[f"{month}_pkey"] or read[f"{month}_at_idx"] or (await connection.execute(by_table)).scalar():
                break
            await asyncio.sleep(0.02)
            await connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        read_whole = (await connection.execute(by_table)).scalar()
    await other.close()
    assert (read[f"{month}_pkey"], read[f"{month}_at_idx"], read_whole) == (1_000, 0, 0)


async def test_insert_waits_for_a_row_lock_and_succeeds(postgres_url: str, db: Database) -> None:
    """Another transaction holds rows that the insert needs; the insert waits for its end."""
    await usage.insert_entries(db, [entry("a")], NOW_MS)
    other = Database(postgres_url)
    await other.open()

    async def hold() -> None:
        async with other.begin() as connection:
            await connection.execute(text("SELECT * FROM runs FOR UPDATE"))
            await asyncio.sleep(0.3)

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0.1)
    done = await usage.insert_entries(db, [entry("b")], NOW_MS)
    await holder
    assert done.inserted == 1
    await other.close()


async def test_concurrent_change_and_revocation_of_a_key_do_not_deadlock(postgres_url: str, db: Database) -> None:
    """Both lock the key before the version of all keys: with different orders they could deadlock."""
    created = await keys.create(db, KeyRequest("ci"), "ada", NOW_MS)
    other = Database(postgres_url)
    await other.open()
    async with other.begin() as connection:  # as far as `keys.revoke` is with its first statement
        await connection.execute(text(f"SELECT * FROM api_keys WHERE id = '{created.key.id}' FOR UPDATE"))
        changing = asyncio.create_task(keys.change(db, created.key.id, lambda key: replace(key, agent="bot")))
        await asyncio.sleep(0.3)
        await connection.execute(text("SET LOCAL lock_timeout = '500ms'"))
        await connection.execute(text(f"UPDATE api_keys SET revoked_at = {NOW_MS} WHERE id = '{created.key.id}'"))
        await versions.raise_version(connection, versions.Subject.KEYS)
    assert await changing is None
    await other.close()


async def test_statement_cancelled_by_the_server_is_unavailable_and_can_be_retried(
    postgres_url: str, db: Database
) -> None:
    """As with statement timeouts, an administrator's cancel, or a failover: the caller repeats the whole transaction."""
    other = Database(postgres_url)
    await other.open()
    async with other.begin() as connection:
        await connection.execute(text("LOCK TABLE token_usage IN ACCESS EXCLUSIVE MODE"))
        waiting = asyncio.create_task(usage.insert_entries(db, [entry("a")], NOW_MS))
        query = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        for _ in range(100):
            if waiting.done():
                break
            await execute(postgres_url, query)
            await asyncio.sleep(0.02)
        with pytest.raises(StoreUnavailable):
            await waiting
    assert (await usage.insert_entries(db, [entry("a")], NOW_MS)).inserted == 1
    await other.close()


async def test_store_works_behind_a_pooler_in_transaction_mode(postgres_url: str) -> None:
    async with transaction_pooler(postgres_url) as pooler:
        gateways = [Database(pooler.url) for _ in range(3)]
        for gateway in gateways:
            await gateway.open()
        first, second, third = gateways
        await first.migrate(NOW_MS)
        await second.check_schema()
        control = Control(third)
        await control.refresh()
        for round_ in range(4):
            batch = [entry(f"{round_}-{number}", run=f"r{number % 5}") for number in range(60)]
            await asyncio.gather(*(usage.insert_entries(gateway, batch, NOW_MS) for gateway in gateways))
        await settings.put(first, "orchestration_enabled", True, "ada", NOW_MS)
        created = await keys.create(second, KeyRequest("ci"), "ada", NOW_MS)
        await control.refresh()
        assert control.snapshot.settings.enabled is True
        assert control.snapshot.find_key(created.plain, NOW_MS) == created.key
        report = await usage_report.report(third, GroupBy.RUN, UsageFilter())
        assert (report.total.calls, report.groups) == (240, 5)
        assert pooler.transactions > 20
        for gateway in gateways:
            await gateway.close()


async def test_refused_login_is_unavailable(postgres_url: str) -> None:
    database = Database(postgres_url.replace("postgres@", "nobody@"))
    await database.open()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await database.schema_revision()
    await database.close()


async def test_dropped_month_partition_is_recreated_by_the_next_insert(postgres_url: str, db: Database) -> None:
    """Somebody dropped the partition of this month: the next batch makes it again."""
    await execute(postgres_url, f"DROP TABLE {partitions.partition_name(partitions.month_of(NOW_MS))}")
    assert (await usage.insert_entries(db, [entry("a")], NOW_MS)).inserted == 1


@pytest.fixture
async def visitor_url(postgres_url: str) -> AsyncIterator[str]:
    """The same database for a user that may do nothing in it but connect."""
    name = f"visitor_{secrets.token_hex(4)}"
    await execute(
        postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD 'visit'", "REVOKE CREATE, USAGE ON SCHEMA public FROM public"
    )
    yield make_url(postgres_url).set(username=name, password="visit").render_as_string(hide_password=False)
    await execute(postgres_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}", "GRANT USAGE ON SCHEMA public TO public")


@pytest.mark.parametrize("granted", ["", "USAGE"])
async def test_user_who_may_not_create_tables_is_told_so(postgres_url: str, visitor_url: str, granted: str) -> None:
    visitor = make_url(visitor_url).username
    await execute(postgres_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    if granted:
        await execute(postgres_url, f"GRANT {granted} ON SCHEMA public TO {visitor}")
    database = Database(visitor_url)
    await database.open()
    try:
        with pytest.raises(StoreUnavailable, match=r"The store refuses its user: .*Give it the right to"):
            await database.migrate(NOW_MS)
    finally:
        await database.close()


async def test_user_who_may_not_read_the_tables_is_told_so(db: Database, postgres_url: str, visitor_url: str) -> None:
    await execute(postgres_url, f"GRANT USAGE ON SCHEMA public TO {make_url(visitor_url).username}")
    database = Database(visitor_url)
    await database.open()
    try:
        with pytest.raises(StoreUnavailable, match="permission denied for table"):
            await versions.read(database)
    finally:
        await database.close()
