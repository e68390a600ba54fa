"""Every log event at warning or above."""

from __future__ import annotations

from typing import Final

from gateway.error_guide.guide import Guide

EVENTS: Final[dict[str, Guide]] = {
    "ledger_out_of_reach": Guide(
        "Redis failed five times in a row, or ten of the last twenty times, or the embedded ledger's file could not be written (disk "
        "full, file deleted). Enforced calls are refused, and the ledger is probed every second until it is back (`ledger_is_back`).",
        "Check Redis, or the disk and file that `reason` names. `reason` says what is wrong and, for a file, what to do. While Redis "
        "is away, no settlement is lost.",
        "error",
    ),
    "ledger_not_closed": Guide(
        "The embedded ledger could not be closed cleanly at the stop. What was booked is in its file and the `-wal` beside it.",
        "Do what `error` says, keep both files together, and start the gateway again.",
        "error",
    ),
    "ledger_rebuilt": Guide(
        "The ledger had lost a project's counters, and they were restored from the store.",
        "Find out why Redis lost its data (`appendonly`, eviction, FLUSHALL), or why the embedded ledger's file is gone. "
        "docs/ledger.md says what may have been spent twice.",
        "warning",
    ),
    "ledger_not_compared": Guide(
        "The store could not be asked whether the embedded ledger's file is new. If it is, it counts from zero.",
        "Bring the store back and restart: a new ledger is then filled from the store.",
        "warning",
    ),
    "counters_not_restored": Guide(
        "A project's counters are lost and could not be restored; its enforced calls are refused until they are.",
        "Bring the store back: the counters come from there. Restoring is retried.",
        "error",
    ),
    "ledger_watch_failed": Guide(
        "A fault of the gateway while it watched the ledger. It goes on watching.", "Please report it.", "error"
    ),
    "ledger_drift": Guide(
        "For an account, the ledger's figures differ from what the store has recorded.",
        "`farebox reconcile` compares every run; `--repair` records the difference.",
        "error",
    ),
    "ledger_clock_not_read": Guide(
        "The ledger's time could not be read; this process's clock is used meanwhile.",
        "Nothing, unless it persists: then see `ledger_out_of_reach`.",
        "warning",
    ),
    "settlement_not_written": Guide(
        "A settlement could be written neither to the ledger nor to the spool. The sweeper will book the hold.",
        "Bring the ledger back, and check that `storage.spool` is writable.",
        "error",
    ),
    "settled_late": Guide(
        "A call was settled after its hold had expired; the difference was booked as an entry of its own.",
        "If it happens often, gateways stall for longer than `reservations.ttl_seconds`: check their CPU and memory.",
        "warning",
    ),
    "hold_left_to_sweeper": Guide(
        "The hold of a call that was not made could not be released, because the ledger is unreachable.",
        "Nothing: it is released when it expires.",
        "warning",
    ),
    "reservation_lost": Guide(
        "The owner of a hold showed no sign of life for `reservations.ttl_seconds`; it was booked or released (`on_lost`).",
        "Gateways are killed during calls (out of memory?), or their heartbeat does not reach the ledger.",
        "warning",
    ),
    "heartbeat_missed": Guide(
        "The holds of calls in flight could not be renewed.",
        "Nothing, unless it lasts for `reservations.ttl_seconds`: then they expire and are settled late.",
        "warning",
    ),
    "sweep_missed": Guide("The search for expired holds failed.", "Nothing: the next sweep finds them.", "warning"),
    "runs_in_progress_not_stored": Guide(
        "Runs whose first call takes long are not shown yet, because the store refused them.",
        "Nothing, unless it persists: then compare the store's schema with this version (`farebox migrate`).",
        "warning",
    ),
    "events_wait_for_ledger": Guide(
        "Usage events wait in memory, because the ledger does not accept them.",
        "Bring the ledger back before the process ends.",
        "warning",
    ),
    "outbox_nearly_full": Guide(
        "Usage that waits for the store has reached 80 % of `storage.outbox_cap`.",
        "Bring the store back, or raise the cap (and Redis's memory). At the cap, enforced calls get 503 `outbox_full`.",
        "warning",
    ),
    "flush_failed": Guide(
        "Usage could not be moved to the store; it waits in the ledger's outbox, and is retried with growing delays.",
        "Check Postgres, or the disk of the SQLite file. Meanwhile, calls are served with the last known settings and keys.",
        "warning, error",
    ),
    "outbox_recovered": Guide("The outbox is below 80 % of its cap again.", "Nothing.", "warning"),
    "breaker_opened": Guide(
        "The ledger or the store (`engine`) is unreachable; this is the alert.",
        "Check it: `reason` says what it answers, if anything. See `ledger_out_of_reach` and `control_unavailable`.",
        "warning",
    ),
    "breaker_closed": Guide("The ledger or the store (`engine`) is back.", "Nothing.", "warning"),
    "loop_detected": Guide(
        "A run's agent sent the same request, or the same tool calls and results, too often: the run was stopped.",
        "Check the agent with `farebox runs show RUN`, then `farebox runs resume RUN`. `loops.repeats` sets the limit.",
        "warning",
    ),
    "loop_not_closed": Guide(
        "A loop was found while the ledger was unreachable: this call was refused, but the run could not be stopped.",
        "Check the ledger; the run's next repetition is detected again.",
        "warning",
    ),
    "prompt_not_counted": Guide(
        "A provider did not say what an untagged call used, and our own count failed: its event has no input tokens.",
        "The exception is in the log line; please report it.",
        "error",
    ),
    "loop_suspected": Guide(
        "A step of a run made `alerts.loop_calls` calls (60) within a minute; refused ones count too.",
        "Check the agent: `farebox runs show RUN`. A step budget in requests ends such a loop by itself.",
        "warning",
    ),
    "usage_dead_lettered": Guide(
        "The store permanently rejected usage events; the rest of the batch was stored.",
        "`SELECT * FROM usage_dead_letter` shows the events and the reasons. Reports do not include them.",
        "warning",
    ),
    "spool_not_written": Guide(
        "A settlement could not be written to disk while the ledger is unreachable. It stays in memory.",
        "Free space on the disk of `storage.spool`, and do not stop the process before the ledger is back.",
        "error",
    ),
    "spooled_record_rejected": Guide(
        "The ledger is up, but rejects a spooled settlement. It is kept in `*.rejected` beside the spool.",
        "Read the file: it says what was spent, and by whom.",
        "error",
    ),
    "spool_line_damaged": Guide(
        "A line of the spool does not match its checksum and was skipped.",
        "Check the disk. The sweeper books the hold behind the line.",
        "error",
    ),
    "spool_line_torn": Guide(
        "The last line of the spool is incomplete, as after a crash.",
        "Nothing: the sweeper books its hold.",
        "warning",
    ),
    "idempotency_unavailable": Guide(
        "Calls with an `Idempotency-Key` are refused with 503, because the storage of kept answers is unreachable.",
        "Bring Redis back, or look at the disk of the ledger's folder.",
        "warning",
    ),
    "answer_not_kept": Guide(
        "An answer for an `Idempotency-Key` could not be kept, so a retry with the same key would make the call again.",
        "Bring Redis back, or look at the disk of the ledger's folder.",
        "warning",
    ),
    "cache_unavailable": Guide(
        "The answer cache is unreachable; calls are made as if it were empty.",
        "Bring Redis back, or look at the disk of the ledger's folder.",
        "warning",
    ),
    "connections_limited": Guide(
        "The process may open fewer files than `server.connections_max` needs, so it accepts fewer connections.",
        "Raise `LimitNOFILE` (systemd) or `ulimit -n`.",
        "warning",
    ),
    "store_unavailable_at_start": Guide(
        "The store did not answer when the gateway started. It serves with the values of the configuration file and waits for the store.",
        "Bring the store back: without it, no key is known, and the settings are those of the file.",
        "warning",
    ),
    "control_unavailable": Guide(
        "Settings, keys, workflows and budgets could not be refreshed; the last known ones stay in force.",
        "Bring the store back. `control_recovered` reports when it is.",
        "warning",
    ),
    "housekeeping_failed": Guide(
        "The daily housekeeping (deleting what `retention_months` and `audit_days` exclude, creating partitions) failed; it is retried.",
        "The reason is in `error`. Postgres: new partitions are needed before the next month begins.",
        "warning, error",
    ),
    "setting_ignored": Guide(
        "The store has an invalid value for a setting; the default or the file's value is in force.",
        "Set it again: `farebox settings set KEY VALUE`.",
        "warning",
    ),
    "batch_dropped": Guide(
        "Learned intents and the trail of decisions waited for the store for so long that the oldest were dropped. Usage is "
        "never among them.",
        "Bring the store back.",
        "warning",
    ),
    "batch_not_written": Guide(
        "The store rejected a batch of learned intents or decisions, and it was dropped. Usage is never among them.",
        "The traceback says why; please report it.",
        "error",
    ),
    "intensity_not_measured": Guide(
        "The intensity of agents could not be computed this time; the last scores stay.",
        "The traceback says why; please report it.",
        "error",
    ),
    "gauges_failed": Guide(
        "The metrics about ledger, store or budgets could not be updated this time.",
        "The traceback says why; please report it.",
        "error",
    ),
    "learned_intents_not_loaded": Guide(
        "The learned intents could not be read; the rules and the trained model classify the steps.",
        "Bring the store back.",
        "warning",
    ),
    "learned_intents_not_kept": Guide(
        "A learned intent could not be stored, so the model may be asked for it again.",
        "Bring the store back.",
        "warning",
    ),
    "intent_not_asked": Guide(
        "The model of `classifier.model` returned no intent. The step goes on with that of the rules and the trained model.",
        "Check whether that model answers; its errors are in the traceback.",
        "warning",
    ),
    "own_question_failed": Guide(
        "A model call by Farebox itself (intent, summary) failed; the call that it was for went on without it.",
        "Check whether that model answers.",
        "warning",
    ),
    "own_question_not_settled": Guide(
        "The cost of a model call by Farebox itself could not be booked; the sweeper books its hold.",
        "See `ledger_out_of_reach`.",
        "warning",
    ),
    "text_not_condensed": Guide(
        "The model that condenses texts failed; the prompt was sent without it.",
        "Check whether that model answers; its errors are in the traceback.",
        "warning",
    ),
    "history_not_loaded": Guide(
        "The past usage of a workflow's steps could not be read; its runs are planned without it.",
        "Bring the store back.",
        "warning",
    ),
    "handler_not_used": Guide(
        "An intent handler of an installed package is invalid and is not used.",
        "`reason` says why; fix or remove the package.",
        "warning",
    ),
    "orchestration_failed": Guide(
        "A fault in classification, allocation, compression or routing. The call went on unmodified, and its budgets were enforced.",
        "The traceback says where; please report it. Turning `orchestration_enabled` off avoids it.",
        "error",
    ),
    "call_failed": Guide(
        "A fault of the gateway; the client got 500 `internal_error`, and the hold was resolved.",
        "Please report the traceback.",
        "error",
    ),
    "control_api_failed": Guide(
        "A fault in the control API or an admin page; the caller got 500.", "Please report the traceback.", "error"
    ),
    "upstream_failed": Guide(
        "An attempt at a provider failed before its answer began. Another deployment or attempt may have answered.",
        "`error` is the reason. If the call failed as a whole, its client got an error.",
        "warning",
    ),
    "budget_reached": Guide(
        "A budget has reached one of the percentages of `alerts.budget_percent`.",
        "Raise it, or let it refuse calls: it is enforced either way.",
        "warning",
    ),
    "overrun": Guide(
        "A provider reported more than was reserved. All of it is booked, because money that was spent is not hidden.",
        "Check which model it is: server-side tools and unknown tokenizers are the usual reasons.",
        "warning",
    ),
    "alert_not_sent": Guide(
        "`alerts.webhook` could not be reached. Without `retry_in_s`, the alert is given up.",
        "The alert is in this log, too; check the address.",
        "warning",
    ),
    "alert_not_taken": Guide(
        "`alerts.webhook` answered with an error. Without `retry_in_s`, the alert is given up.",
        "The alert is in this log, too; check the receiver.",
        "warning",
    ),
    "worker_died": Guide(
        "A worker process died and was replaced. Its holds expire and are booked.",
        "Check for the kernel's out-of-memory killer.",
        "error",
    ),
}
