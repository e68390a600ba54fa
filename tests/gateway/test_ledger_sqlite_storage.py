"""The embedded engine's storage: rows, journal and folding, compared with the in-memory twin."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ledger import sqlite_rows, sqlite_storage
from gateway.ledger.port import Reserve
from gateway.ledger.sqlite_schema import TABLES
from policies.amounts import UNLIMITED, Amount, Limit
from policies.book import Book, BookStorage, DictStorage, is_forgettable_account, is_forgettable_reservation
from policies.reservation import EXPIRED_KEEP_MS, RESOLVED_KEEP_MS, Demand, Gate, Hold, OnLost, Progress
from policies.settlement import EntryKind, OutboxEntry


def request(name: str, account: str = "run", tokens: int = 10) -> Reserve:
    hold = Hold(account, Limit(tokens=1_000))
    return Reserve(name, "gw", (hold,), Demand(0, tokens, tokens, requests=0), 60_000, b"{}", OnLost.CHARGE)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with empty_database() as connection:
        yield connection


@contextmanager
def empty_database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("INSERT INTO meta (key, value) VALUES ('highest_ms', 0)")
        yield connection


def test_every_statement_uses_an_index(connection: sqlite3.Connection) -> None:
    """The cost of an operation must not grow with what happened before."""
    statements = [value for name, value in vars(sqlite_rows).items() if isinstance(value, str) and " WHERE " in value]
    assert len(statements) >= 8
    for template in statements:
        statement = template.replace("{rows}", "(?, ?), (?, ?)")
        arguments = (0,) * statement.count("?")
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", arguments)]
        # This index holds only pending reservations; the others are the keys given as arguments.
        harmless = ("SCAN reservation USING INDEX reservation_due", "SCAN wanted", "SCAN known", "SCAN 2 CONSTANT ROWS")
        plan = [line for line in plan if line not in harmless]
        assert not any(line.startswith("SCAN") or "TEMP B-TREE FOR ORDER BY" in line for line in plan), (
            statement,
            plan,
        )


@pytest.mark.parametrize("folded", [True, False], ids=["from its tables", "from its journal"])
def test_storage_reads_the_same_after_its_cache_is_dropped(connection: sqlite3.Connection, folded: bool) -> None:
    storage = sqlite_storage.SqliteStorage(connection, 0)
    book = Book(storage)
    hold = Hold("run", Limit(100, None, 5), Limit(90), keep_ms=77)
    draft = bytes(range(256))
    asked = Reserve("c1", "gw", (hold, Hold("key")), Demand(1, 2, 2, 3, 4), 60_000, draft, OnLost.RELEASE)
    book.reserve("p", asked, 5)
    book.set_gate("p", "key", Gate.PAUSED, 6)
    book.set_override("p", "key", Limit(None, 0), 7)
    book.current_run("p", "nightly", "r1", 10, 7)
    book.record("p", [OutboxEntry("", "c0", EntryKind.RECORDED, "p", Amount(1), 7, draft, draft)], 7)

    def contents() -> tuple[object, ...]:
        accounts, reservation = [storage.account("p", name) for name in ("run", "key")], storage.reservation("p", "c1")
        return accounts, reservation, storage.run("p", "nightly"), storage.outbox_size()

    before = contents()
    assert before[-1] == 1
    if folded:
        storage.fold()
    storage.commit(8)
    storage.roll_back()
    assert contents() == before
    account = storage.account("p", "key")
    assert account is not None
    assert account.tightened is UNLIMITED
    (entry,) = storage.outbox()
    assert (entry.draft, entry.detail) == (draft, draft)


def test_overdue_journal_is_folded_on_commit(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = sqlite_storage.SqliteStorage(connection, 0)
    book = Book(storage)
    monkeypatch.setattr(sqlite_storage, "_JOURNAL_OVERDUE", 5)
    for n in range(23):
        book.reserve("p", request(f"c{n}"), n)
        storage.commit(n)
        (journaled,) = connection.execute("SELECT count(*) FROM journal").fetchone()
        assert journaled <= 5
    assert len(book.pending("p", 100, 30)) == 23


def test_failed_fold_changes_nothing(connection: sqlite3.Connection) -> None:
    storage = sqlite_storage.SqliteStorage(connection, 0)
    book = Book(storage)
    book.reserve("p", request("c1"), 0)
    storage.commit(0)
    connection.execute("CREATE TRIGGER fails BEFORE INSERT ON reservation BEGIN SELECT RAISE(ABORT, 'no'); END")
    book.reserve("p", request("c2"), 1)
    with pytest.raises(sqlite3.Error, match="no"):
        book.pending("p", 10, 1)
    storage.roll_back()
    assert storage.reservation("p", "c2") is None
    connection.execute("DROP TRIGGER fails")
    assert [row[0] for row in book.pending("p", 10, 1)] == ["c1"]
    (balance,) = book.balances("p", ["run"], 1)
    assert balance.reserved == Amount(10)


CHANGES: dict[str, Callable[[Book], object]] = {
    "reserve": lambda book: book.reserve("p", request("c2"), 50),
    "tighten": lambda book: book.reserve("p", replace(request("c2"), holds=(Hold("run", Limit(500), Limit(99)),)), 50),
    "keep time": lambda book: book.reserve("p", replace(request("c2"), holds=(Hold("run", keep_ms=12),)), 50),
    "extend": lambda book: book.extend("p", "c1", (Hold("run", Limit(None, 7)),), Demand(0, 5, 5, requests=0), 50),
    "renew": lambda book: book.renew("p", [Progress("c1", Amount(1, 2, 3))], 70_000, 50),
    "settle": lambda book: book.settle("p", "c1", Amount(20, 2, 3), b"", 50),
    "void": lambda book: book.void("p", "c1", 50),
    "expire": lambda book: book.expire_due(10, 60_000),
    "override": lambda book: book.set_override("p", "run", Limit(None, None, 0), 50),
    "gate": lambda book: book.set_gate("p", "run", Gate.CANCELLED, 50),
    "restore": lambda book: book.restore("p", "run", Amount(4, 5, 6), 34, Gate.PAUSED, Limit(7), 50),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_persisted(connection: sqlite3.Connection, name: str) -> None:
    written, twin = sqlite_storage.SqliteStorage(connection, 0), DictStorage()
    for storage in (written, twin):
        book = Book(storage)
        book.reserve("p", request("c1"), 0)
        if storage is written:
            written.commit(0)
        CHANGES[name](book)
    written.commit(60_000)
    again = sqlite_storage.SqliteStorage(connection, 0)
    assert again.account("p", "run") == twin.account("p", "run")
    for reservation_id in ("c1", "c2"):
        assert again.reservation("p", reservation_id) == twin.reservation("p", reservation_id)
    assert [replace(entry, position="") for entry in again.outbox()] == [
        replace(entry, position="") for entry in twin.outbox()
    ]


Step = Callable[[Book, int], object]


CALLS = range(6)


STEPS: tuple[Callable[[int], Step], ...] = (
    lambda n: lambda book, now: book.reserve("p", request(f"c{n}", f"run{n % 2}", 3), now),
    lambda n: lambda book, now: book.settle("p", f"c{n}", Amount(2), b"{}", now),
    lambda n: lambda book, now: book.void("p", f"c{n}", now),
    lambda n: lambda book, now: book.current_run("p", f"w{n % 2}", f"r{now}", 40, now),
    lambda n: lambda book, now: book.outbox_acknowledge(book.outbox_read("f", n, now), now),
    lambda n: lambda book, now: book.expire_due(n + 1, now),
    lambda n: lambda book, now: book.purge(100, now),
)


BATCHES = st.lists(
    st.builds(lambda step, n: step(n), st.sampled_from(STEPS), st.sampled_from(CALLS)), min_size=1, max_size=4
)


PAUSES_MS = st.sampled_from([10, 10, 10, 100_000, 2 * RESOLVED_KEEP_MS, 2 * EXPIRED_KEEP_MS])


ENDS = st.sampled_from(["go on", "go on", "fold", "fail", "die"])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(PAUSES_MS, BATCHES, ENDS), max_size=40))
def test_committed_state_survives_a_crash_at_any_stage_of_folding(
    history: list[tuple[int, list[Step], str]],
) -> None:
    """Compares with an in-memory twin. Acknowledged events may come back: the store knows their ids."""
    twin, now_ms = DictStorage(), 0
    with empty_database() as connection, mock.patch.multiple(sqlite_storage, FOLD_MIN=2, JOURNAL_MAX=6, _RECENT_MS=0):
        storage = sqlite_storage.SqliteStorage(connection, 0)
        book, other = Book(storage), Book(twin)
        for pause_ms, batch, end in history:
            now_ms += pause_ms
            if end == "fail":
                for step in batch:
                    step(book, now_ms)
                storage.roll_back()
            else:
                for step in batch:
                    step(book, now_ms), step(other, now_ms)
                storage.commit(now_ms)
            if end == "fold" or storage.is_journal_long:
                storage.fold_oldest()
                storage.commit(now_ms)
            if end == "die":
                storage = sqlite_storage.SqliteStorage(connection, 0)
                book = Book(storage)
            known = {entry.id for entry in twin.outbox()}
            storage.remove([entry.position for entry in storage.outbox() if entry.id not in known])
            storage.commit(now_ms)
            assert [entry.id for entry in storage.outbox()] == [entry.id for entry in twin.outbox()]
            assert storage.outbox_size() == twin.outbox_size()
            for n in CALLS:
                assert records_of(storage, n, now_ms) == records_of(twin, n, now_ms)
            assert storage.due_reservations(now_ms, 100) == twin.due_reservations(now_ms, 100)


def records_of(storage: BookStorage, n: int, now_ms: int) -> tuple[object, ...]:
    """Without what a purge may remove: the journal may bring it back."""
    account, reservation, run = (
        storage.account("p", f"run{n}"),
        storage.reservation("p", f"c{n}"),
        storage.run("p", f"w{n}"),
    )
    return (
        None if account is None or is_forgettable_account(account, now_ms) else account,
        None if reservation is None or is_forgettable_reservation(reservation, now_ms) else reservation,
        None if run is None or run[1] <= now_ms else run,
    )


def test_rollback_undoes_every_change(connection: sqlite3.Connection) -> None:
    storage = sqlite_storage.SqliteStorage(connection, 0)
    book = Book(storage)
    book.reserve("p", request("c1"), 0)
    storage.commit(0)
    assert book.outbox_size(0) == 0
    book.settle("p", "c1", Amount(4), b"", 0)
    book.reserve("p", request("c2"), 0)
    book.current_run("p", "w", "r1", 10, 0)
    assert book.outbox_size(0) == 1
    book.pending("p", 10, 0)  # writes pending changes: the transaction is open now
    storage.roll_back()
    assert (book.outbox_size(0), storage.run("p", "w"), storage.reservation("p", "c2")) == (0, None, None)
    (balance,) = book.balances("p", ["run"], 0)
    assert (balance.settled.tokens, balance.reserved.tokens) == (0, 10)


def test_outbox_positions_are_not_reused_after_a_restart(connection: sqlite3.Connection) -> None:
    first = Book(sqlite_storage.SqliteStorage(connection, 1_000))
    first.reserve("p", request("c1"), 1_000)
    first.settle("p", "c1", Amount(1), b"", 1_000)
    (entry,) = first.outbox_read("f", 10, 1_000)
    first.outbox_acknowledge([entry], 1_000)
    second = Book(sqlite_storage.SqliteStorage(connection, 1_001))
    second.reserve("p", request("c2"), 1_001)
    second.settle("p", "c2", Amount(1), b"", 1_001)
    second.outbox_acknowledge([entry], 1_001)
    assert second.outbox_size(1_001) == 1


def test_purge_keeps_an_account_that_was_used_again(connection: sqlite3.Connection) -> None:
    """The purge finds accounts by an index that use does not update: it checks again before it deletes."""
    storage = sqlite_storage.SqliteStorage(connection, 0)
    book = Book(storage)
    for n in range(3):
        book.restore("p", f"run:{n}", Amount(5), 10_000, None, None, 0)
    storage.commit(0)
    book.restore("p", "run:0", Amount(6), 10_000, None, None, 9_000)
    storage.commit(9_000)
    assert book.purge(10, 10_000) == 2
    assert book.purge(10, 18_999) == 0
    assert book.purge(10, 19_000) == 1
    assert connection.execute("SELECT count(*) FROM account").fetchone() == (0,)
