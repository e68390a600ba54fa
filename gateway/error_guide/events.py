"""Every log event at warning or above."""

from __future__ import annotations

from typing import Final

from gateway.error_guide.guide import Guide

EVENTS: Final[dict[str, Guide]] = {
    "ledger_out_of_reach": Guide(
        "The ledger failed five times in a row, or ten of the last twenty. Enforced calls are refused at once from now on, and it "
        "is asked every second whether it is back (`ledger_is_back`).",
        "Look at Redis: `reason` says whether it refuses, stalls or is slow. Nothing that was settled is lost meanwhile.",
        "error",
    ),
    "ledger_rebuilt": Guide(
        "The ledger had lost a project's counters, and they were restored from the store.",
        "Find out why Redis lost its data (`appendonly`, eviction, FLUSHALL), or who moved the embedded ledger's file away. "
        "docs/ledger.md says what may have been spent twice.",
        "warning",
    ),
    "ledger_not_compared": Guide(
        "The store could not be asked whether the embedded ledger is the one of before. If it is a new one, it counts from nothing.",
        "Bring the store back and start again: a new ledger is then filled from the store.",
        "warning",
    ),
    "counters_not_restored": Guide(
        "A project's counters are gone and could not be restored; its enforced calls are refused until they are.",
        "Bring the store back: the counters come from there. It is tried again.",
        "error",
    ),
    "ledger_watch_failed": Guide(
        "A fault of the gateway while it looked after the ledger. It goes on looking.", "Please report it.", "error"
    ),
    "ledger_drift": Guide(
        "For an account, the ledger has booked something else than the store has recorded.",
        "`farebox reconcile` compares every run, and writes the difference down with `--repair`.",
        "error",
    ),
    "ledger_clock_not_read": Guide(
        "The ledger was not asked for the time; this process's clock carries on meanwhile.",
        "Nothing, unless it stays: then see `ledger_out_of_reach`.",
        "warning",
    ),
    "settlement_not_written": Guide(
        "A settlement could be written neither to the ledger nor to the spool. The hold is booked by the sweeper later.",
        "Bring the ledger back, and look whether `storage.spool` can be written to.",
        "error",
    ),
    "settled_late": Guide(
        "A call was settled after its hold had expired; the difference was booked as an entry of its own.",
        "If it happens often, gateways stall for longer than `reservations.ttl_seconds`: look at their CPU and memory.",
        "warning",
    ),
    "hold_left_to_sweeper": Guide(
        "A hold of a call that was not made could not be taken back, because the ledger is away.",
        "Nothing: it is given back when its time is over.",
        "warning",
    ),
    "reservation_lost": Guide(
        "The owner of a hold showed no sign of life for `reservations.ttl_seconds`; it was booked or given back (`on_lost`).",
        "Gateways are killed in mid-call (memory?), or their heartbeat does not reach the ledger.",
        "warning",
    ),
    "heartbeat_missed": Guide(
        "The holds of calls under way could not be renewed.",
        "Nothing, unless it lasts for `reservations.ttl_seconds`: then they expire and are settled late.",
        "warning",
    ),
    "sweep_missed": Guide("Expired holds could not be looked for.", "Nothing: the next sweep does.", "warning"),
    "events_wait_for_ledger": Guide(
        "Usage events wait in memory because the ledger does not take them.",
        "Bring the ledger back before the process ends.",
        "warning",
    ),
    "outbox_nearly_full": Guide(
        "Usage waits for the store and has reached 80 % of `storage.outbox_cap`.",
        "Bring the store back, or raise the cap (and Redis's memory). At the cap enforced calls get 503 `outbox_full`.",
        "warning",
    ),
    "flush_failed": Guide(
        "Usage could not be moved to the store; it waits in the ledger's outbox and is tried again, ever more slowly.",
        "Look at Postgres, or at the disk of the SQLite file. Calls are served meanwhile, with the last known settings and keys.",
        "warning, error",
    ),
    "outbox_recovered": Guide("The outbox is below 80 % of its cap again.", "Nothing.", "warning"),
    "breaker_opened": Guide(
        "Ledger or store (`engine`) is out of reach, as the webhook is told.",
        "Look at it: `reason` says what it answers, if anything. See `ledger_out_of_reach` and `control_unavailable`.",
        "warning",
    ),
    "breaker_closed": Guide("Ledger or store (`engine`) is back.", "Nothing.", "warning"),
    "loop_detected": Guide(
        "A run's agent came too often with the very same request, or with the same tool calls and results: the run was stopped.",
        "Look at the agent: `farebox runs show RUN`, then `farebox runs resume RUN`. `loops.repeats` says how often is too often.",
        "warning",
    ),
    "loop_not_closed": Guide(
        "A loop was found while the ledger was out of reach: this call was refused, and the run could not be stopped.",
        "Look at the ledger; the next loop of the run is found again.",
        "warning",
    ),
    "prompt_not_counted": Guide(
        "A provider did not say what an untagged call used, and our own count failed: its event has no input tokens.",
        "The exception stands beside it; please report it.",
        "error",
    ),
    "loop_suspected": Guide(
        "One step of one run made `alerts.loop_calls` calls (60) within a minute; refused ones count too.",
        "Look at the agent: `farebox runs show RUN`. A step budget in requests ends such a loop by itself.",
        "warning",
    ),
    "usage_dead_lettered": Guide(
        "The store refused usage events for good; the rest of the batch was stored.",
        "`SELECT * FROM usage_dead_letter` shows what and why. Nothing of it is in reports.",
        "warning",
    ),
    "spool_not_written": Guide(
        "A settlement could not be written to disk while the ledger is away. It stays in memory.",
        "Make room on the disk of `storage.spool`, and do not stop the process before the ledger is back.",
        "error",
    ),
    "spooled_record_rejected": Guide(
        "The ledger answers and does not take a spooled settlement. It is kept in `*.rejected` beside the spool.",
        "Read the file: it says what was spent, and by whom.",
        "error",
    ),
    "spool_line_damaged": Guide(
        "A line of the spool does not match its checksum and was left out.",
        "Look at the disk. The hold behind it is booked by the sweeper.",
        "error",
    ),
    "spool_line_torn": Guide(
        "The last line of the spool was not written to its end, as after a crash.",
        "Nothing: its hold is booked by the sweeper.",
        "warning",
    ),
    "idempotency_unavailable": Guide(
        "Calls under an `Idempotency-Key` are refused with 503, because kept answers are out of reach.",
        "Bring Redis back, or look at the disk of the ledger's folder.",
        "warning",
    ),
    "answer_not_kept": Guide(
        "An answer under an `Idempotency-Key` could not be kept: the same key would make the call again.",
        "Bring Redis back, or look at the disk of the ledger's folder.",
        "warning",
    ),
    "cache_unavailable": Guide(
        "The answer cache is out of reach; calls are made as if it were empty.",
        "Bring Redis back, or look at the disk of the ledger's folder.",
        "warning",
    ),
    "connections_limited": Guide(
        "The process may open fewer files than `server.connections_max` asks for; the limit is lower accordingly.",
        "Raise `LimitNOFILE` (systemd) or `ulimit -n`.",
        "warning",
    ),
    "store_unavailable_at_start": Guide(
        "The store did not answer when the gateway started. It serves with the file's values and waits for the store.",
        "Bring the store back: without it no key is known, and settings are the file's.",
        "warning",
    ),
    "control_unavailable": Guide(
        "Settings, keys, workflows and budgets could not be read anew; the last ones known stay in force.",
        "Bring the store back. `control_recovered` tells when it is.",
        "warning",
    ),
    "housekeeping_failed": Guide(
        "The daily tidying (what is older than `retention_months` and `audit_days`, partitions ahead) did not succeed; it is tried again.",
        "The reason is in `error`. Postgres: new partitions are needed before the month turns.",
        "warning, error",
    ),
    "setting_ignored": Guide(
        "The store has a value for a setting that the setting cannot have; the default or the file's value is in force.",
        "Set it again: `farebox settings set KEY VALUE`.",
        "warning",
    ),
    "batch_dropped": Guide(
        "Notes (learned intents, the trail of decisions) waited for the store for so long that the oldest were dropped. Usage is "
        "never among them.",
        "Bring the store back.",
        "warning",
    ),
    "batch_not_written": Guide(
        "The store took a batch of notes for no good, and it was dropped. Usage is never among them.",
        "The traceback says why; please report it.",
        "error",
    ),
    "intensity_not_measured": Guide(
        "Agents' intensity could not be measured this time; the last scores stay.",
        "The traceback says why; please report it.",
        "error",
    ),
    "gauges_failed": Guide(
        "Ledger and store, or budgets, could not be compared for the metrics this time.",
        "The traceback says why; please report it.",
        "error",
    ),
    "learned_intents_not_loaded": Guide(
        "What was learned about intents could not be read; they are told by rules and the trained model.",
        "Bring the store back.",
        "warning",
    ),
    "learned_intents_not_kept": Guide(
        "A learned intent could not be stored, and may have to be asked for again.", "Bring the store back.", "warning"
    ),
    "intent_not_asked": Guide(
        "The model of `classifier.model` did not tell an intent. The step goes on with what rules and the trained model said.",
        "Look whether that model answers; its errors are in the traceback.",
        "warning",
    ),
    "own_question_failed": Guide(
        "A question of Farebox's own to a model (intent, summary) failed; the call that it was for went on without.",
        "Look whether that model answers.",
        "warning",
    ),
    "own_question_not_settled": Guide(
        "What a question of Farebox's own really cost could not be booked; its hold is booked by the sweeper.",
        "See `ledger_out_of_reach`.",
        "warning",
    ),
    "text_not_condensed": Guide(
        "The model that condenses texts failed; the prompt went on as it was.",
        "Look whether that model answers; its errors are in the traceback.",
        "warning",
    ),
    "history_not_loaded": Guide(
        "What a workflow's steps used in the past could not be read; its runs are planned without.",
        "Bring the store back.",
        "warning",
    ),
    "handler_not_used": Guide(
        "An intent handler of an installed package is not valid and is left out.",
        "`reason` says why; correct or remove the package.",
        "warning",
    ),
    "orchestration_failed": Guide(
        "A fault in classifying, allocating, compressing or routing. The call went on unmodified, its budgets kept.",
        "The traceback says where; please report it. `orchestration_enabled` false is the way around it.",
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
        "`error` is the reason. If the call failed too, its client was told.",
        "warning",
    ),
    "budget_reached": Guide(
        "A budget has reached one of the percentages of `alerts.budget_percent`.",
        "Raise it, or let it refuse: it is kept either way.",
        "warning",
    ),
    "overrun": Guide(
        "A provider reported more than was reserved. All of it is booked: money that is gone is not hidden.",
        "Look which model it is: server-side tools and unknown tokenizers are the usual reasons.",
        "warning",
    ),
    "alert_not_sent": Guide(
        "`alerts.webhook` could not be reached.", "The alert is in this log too; look at the address.", "warning"
    ),
    "alert_not_taken": Guide(
        "`alerts.webhook` answered with an error.", "The alert is in this log too; look at the receiver.", "warning"
    ),
    "worker_died": Guide(
        "A worker process ended by itself and was replaced. Its holds expire and are booked.",
        "Look for the kernel's out-of-memory killer.",
        "error",
    ),
}
