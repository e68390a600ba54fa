"""Learned intents, the audit, and the users and sessions of the admin pages, on SQLite and on Postgres."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.store import admin_users, audit, housekeeping, intents
from gateway.store.admin_users import ABSOLUTE_MS, IDLE_MS, WeakPassword
from gateway.store.audit import AuditEvent, AuditFilter
from gateway.store.database import Database
from gateway.store.housekeeping import Retention
from gateway.store.intents import LearnedIntent
from tests.store_events import NOW_MS

pytest_plugins = ("tests.store_fixtures",)

PASSWORD = "correct horse battery"


async def test_learned_intents_are_returned_until_they_expire(db: Database) -> None:
    first = LearnedIntent("h1", "extract", 0.8, "llm", NOW_MS + 10, "because", NOW_MS)
    second = LearnedIntent("h2", "send", 0.9, "llm", NOW_MS + 99, "", NOW_MS + 1)
    await intents.put_many(db, [first, second])
    await intents.put_many(db, [])
    assert await intents.get_many(db, ["h1", "h2", "h3"], NOW_MS) == {"h1": first, "h2": second}
    assert await intents.get_many(db, ["h1", "h2"], NOW_MS + 10) == {"h2": second}
    assert await intents.get_many(db, [], NOW_MS) == {}
    assert await intents.latest(db, NOW_MS) == [second, first]
    better = LearnedIntent("h1", "filter", 0.95, "llm", NOW_MS + 500, "", NOW_MS + 2)
    await intents.put_many(db, [better])
    assert await intents.get_many(db, ["h1"], NOW_MS) == {"h1": better}
    assert await intents.forget_expired(db, NOW_MS + 99) == 1


async def test_audit_is_filtered_by_every_field(db: Database) -> None:
    events = [
        AuditEvent(NOW_MS, "ada", "setting.changed", "orchestration_enabled", detail={"old": False, "new": True}),
        AuditEvent(NOW_MS + 1, "bob", "setting_x", "t"),
        AuditEvent(NOW_MS + 2, "ada", "run.cancelled", "r1", "default", "r1", "req-1"),
    ]
    await audit.append(db, events[:2])
    await audit.append(db, events[2:])
    recorded = await audit.query(db, AuditFilter())
    assert [(event.at_ms, event.actor, event.action, event.detail) for event in reversed(recorded)] == [
        (event.at_ms, event.actor, event.action, event.detail) for event in events
    ]

    async def actions(**filters: str | int) -> list[str]:
        return [event.action for event in await audit.query(db, AuditFilter(**filters))]  # type: ignore[arg-type]

    assert await actions(actor="ada") == ["run.cancelled", "setting.changed"]
    assert await actions(action="setting.") == ["setting.changed"]
    assert await actions(action="setting") == []
    assert await actions(run="r1", project="default") == ["run.cancelled"]
    assert await actions(from_ms=NOW_MS + 1, to_ms=NOW_MS + 2) == ["setting_x"]
    older = await audit.query(db, AuditFilter(), limit=1, before_id=recorded[0].id)
    assert [event.action for event in older] == ["setting_x"]


async def test_password_check_accepts_only_the_right_password(db: Database) -> None:
    user = await admin_users.put_user(db, "ada", PASSWORD, "admin", NOW_MS)
    assert await admin_users.check_password(db, "ada", PASSWORD) == user
    assert await admin_users.check_password(db, "ada", PASSWORD + "!") is None
    assert await admin_users.check_password(db, "eve", PASSWORD) is None
    with pytest.raises(WeakPassword, match="at least 12"):
        await admin_users.put_user(db, "bob", "sk-1234", "viewer", NOW_MS)
    with pytest.raises(ValueError, match="is not a role"):
        await admin_users.put_user(db, "bob", PASSWORD, "root", NOW_MS)
    async with db.begin() as connection:
        stored = str((await connection.execute(text("SELECT * FROM admin_users"))).all())
    assert PASSWORD not in stored
    assert "$argon2id$" in stored
    assert [user.name for user in await admin_users.list_users(db)] == ["ada"]


async def test_session_ends_by_idle_time_age_and_logout(db: Database) -> None:
    user = await admin_users.put_user(db, "ada", PASSWORD, "viewer", NOW_MS)
    token = await admin_users.open_session(db, user, NOW_MS)
    async with db.begin() as connection:
        assert token not in str((await connection.execute(text("SELECT * FROM admin_sessions"))).all())
    at_ms = NOW_MS
    while at_ms + IDLE_MS - 1 < NOW_MS + ABSOLUTE_MS:  # while it is used, only its age ends it
        at_ms += IDLE_MS - 1
        session = await admin_users.find_session(db, token, at_ms)
        assert session is not None
        assert session.user.role == "viewer"
    assert await admin_users.find_session(db, token, NOW_MS + ABSOLUTE_MS) is None
    silent = await admin_users.open_session(db, user, NOW_MS)
    assert await admin_users.find_session(db, silent, NOW_MS + IDLE_MS) is None
    assert await admin_users.find_session(db, silent, NOW_MS) is None
    out = await admin_users.open_session(db, user, NOW_MS)
    await admin_users.close_session(db, out)
    assert await admin_users.find_session(db, out, NOW_MS) is None
    assert await admin_users.find_session(db, "made up", NOW_MS) is None


async def test_sessions_end_on_password_change_and_when_the_user_is_disabled(db: Database) -> None:
    user = await admin_users.put_user(db, "ada", PASSWORD, "admin", NOW_MS)
    before = await admin_users.open_session(db, user, NOW_MS)
    await admin_users.put_user(db, "ada", PASSWORD + " staple", "admin", NOW_MS)
    assert await admin_users.find_session(db, before, NOW_MS) is None
    after = await admin_users.open_session(db, user, NOW_MS)
    assert await admin_users.disable_user(db, "ada", NOW_MS) is True
    assert await admin_users.find_session(db, after, NOW_MS) is None
    assert await admin_users.check_password(db, "ada", PASSWORD + " staple") is None
    assert await admin_users.disable_user(db, "eve", NOW_MS) is False


async def test_housekeeping_deletes_expired_sessions_and_intents(db: Database) -> None:
    user = await admin_users.put_user(db, "ada", PASSWORD, "admin", NOW_MS)
    await admin_users.open_session(db, user, NOW_MS - IDLE_MS)
    await intents.put_many(db, [LearnedIntent("h1", "extract", 0.8, "llm", NOW_MS - 1)])
    assert await housekeeping.run_housekeeping(db, NOW_MS, Retention(usage_months=12)) == []
    async with db.begin() as connection:
        for table in ("admin_sessions", "intent_cache"):
            assert (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar() == 0


async def test_audit_older_than_its_retention_is_deleted(db: Database) -> None:
    day_ms = 86_400_000
    now_ms = time.time_ns() // 1_000_000  # the database checks the age by its own clock
    ages = [400 * day_ms + 7_200_000, 400 * day_ms - 60_000, 0]
    old = [AuditEvent(now_ms - 401 * day_ms, "gateway", "call.refused", str(number)) for number in range(5_001)]
    await audit.append(db, [*old, *(AuditEvent(now_ms - age, "ada", "setting.changed", str(age)) for age in ages)])
    await housekeeping.run_housekeeping(db, now_ms)
    assert len(await audit.query(db, AuditFilter(), 10_000)) == 5_004, "without a retention all of it stays"
    await housekeeping.run_housekeeping(db, now_ms, Retention(audit_days=400))
    assert [event.target for event in await audit.query(db, AuditFilter(), 10_000)] == [str(age) for age in ages[:0:-1]]
    with pytest.raises(DBAPIError, match="append-only"):  # as by a gateway whose clock is wrong
        await audit.forget_old(db, now_ms + 500 * day_ms, 400)
    assert len(await audit.query(db, AuditFilter())) == 2


async def test_clock_ahead_of_the_databases_does_not_stop_housekeeping(db: Database) -> None:
    """The shortest retention is as long as the table's own protection, which goes by the database's clock."""
    ninety_days_ms = 90 * 86_400_000
    now_ms = time.time_ns() // 1_000_000
    await audit.append(db, [AuditEvent(now_ms - ninety_days_ms + 20_000, "gateway", "call.refused")])
    await housekeeping.run_housekeeping(db, now_ms + 30_000, Retention(audit_days=90))
    assert len(await audit.query(db, AuditFilter())) == 1
