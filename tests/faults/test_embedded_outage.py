"""A gateway whose embedded ledger is deleted, or whose disk is full, while it serves.

Calls with a budget are refused with a code that says so, calls without one go on, /readyz and the log say what to do, and
nothing that was booked is lost.
"""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

from gateway.ledger.sqlite_worker import FILE_CHECK_INTERVAL_S
from tests.acceptance.serving import PROMPT_TOKENS, serving
from tests.farebox_process import FareboxProcess, tagged
from tests.faults.test_gateway_stop import check_books
from tests.waiting import until

BUDGETS = [{"scope": "run", "match": "*", "tokens": 1_000_000}]


def status_and_code(gateway: FareboxProcess) -> tuple[int, str]:
    reply = gateway.chat(headers=tagged("wf", "r-1"))
    return reply.status, reply.json().get("error", {}).get("code", "")


def refuses(gateway: FareboxProcess) -> bool:
    return status_and_code(gateway) == (503, "ledger_unavailable")


def reason(gateway: FareboxProcess) -> str:
    reply = gateway.get("/readyz")
    ledger_state = reply.json()["ledger"]
    assert (reply.status, ledger_state["available"]) == (503, False)
    return str(ledger_state["reason"])


def ledger_finding(gateway: FareboxProcess) -> str:
    (finding,) = (finding for finding in gateway.get("/api/doctor").json()["findings"] if finding["check"] == "ledger")
    assert finding["status"] == "fail"
    return str(finding["detail"])


def test_deleted_ledger_refuses_budgeted_calls_and_is_written_anew_at_the_stop(tmp_path: Path) -> None:
    with serving(tmp_path, budgets=BUDGETS) as served:
        gateway = served.gateway
        for _ in range(5):
            assert status_and_code(gateway) == (200, "")
        (tmp_path / ".farebox/ledger.db").unlink()
        time.sleep(2 * FILE_CHECK_INTERVAL_S)  # a call that begins before it is noticed may be left to the sweeper
        assert refuses(gateway)
        assert gateway.chat().status == 200, "a call without a budget needs no ledger"
        for message in (reason(gateway), ledger_finding(gateway), gateway.log):
            assert "ledger.db or its -wal file was deleted" in message
            assert "Stop this process" in message
        assert "call_failed" not in gateway.log
        assert gateway.stop() == 0
        gateway.start()
        assert status_and_code(gateway) == (200, "")
        assert gateway.stop() == 0
        assert check_books(tmp_path, "r-1") >= 6 * PROMPT_TOKENS


def test_full_disk_refuses_budgeted_calls_until_there_is_space(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    with serving(tmp_path, budgets=BUDGETS) as served:
        gateway = served.gateway
        assert status_and_code(gateway) == (200, "")
        unlimited = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)
        size = (tmp_path / ".farebox/ledger.db-wal").stat().st_size
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))
        try:
            until(lambda: refuses(gateway), 5, "nothing can be booked")
            assert "Look at the disk and its space" in reason(gateway)
            assert "Look at the disk and its space" in ledger_finding(gateway)
        finally:
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, unlimited)
        until(lambda: gateway.get("/readyz").status == 200, 10, "it notices by itself")
        assert status_and_code(gateway) == (200, "")
        assert "ledger_is_back" in gateway.log
        assert gateway.stop() == 0
        assert check_books(tmp_path, "r-1") > 0


def test_gateway_stopped_while_its_disk_is_full_loses_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, budgets=BUDGETS) as served:
        gateway = served.gateway
        assert status_and_code(gateway) == (200, "")
        unlimited = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)
        size = (tmp_path / ".farebox/ledger.db-wal").stat().st_size
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))
        until(lambda: refuses(gateway), 5, "nothing can be booked")
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(40) == 0
        assert "Traceback" not in gateway.log
        gateway.start()
        assert status_and_code(gateway) == (200, "")
        assert gateway.stop() == 0
        assert check_books(tmp_path, "r-1") > 0


def test_outage_is_logged_once_and_not_at_each_attempt(tmp_path: Path) -> None:
    with serving(tmp_path, budgets=BUDGETS, reservations={"sweep_seconds": 0.2}) as served:
        gateway = served.gateway
        assert status_and_code(gateway) == (200, "")
        before = len(gateway.log)
        (tmp_path / ".farebox/ledger.db").unlink()
        time.sleep(2 * FILE_CHECK_INTERVAL_S)
        assert all(refuses(gateway) for _ in range(20))
        time.sleep(2.5)  # events of refused calls are tried every second
        new_log = gateway.log[before:]
        assert "hold_left_to_sweeper" not in new_log, "a call that was refused for the outage has no hold"
        events = ("ledger_out_of_reach", "sweep_missed", "events_wait_for_ledger")
        assert {event: new_log.count(event) for event in events} == dict.fromkeys(events, 1)
