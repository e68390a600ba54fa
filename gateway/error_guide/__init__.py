"""What every error code, every log event at warning or above and every check of `farebox doctor` means, and what to do.

`farebox explain NAME` prints one, docs/errors.md is made from all of them, and a test compares the tables with the code.
"""

from __future__ import annotations

from typing import Final

from gateway.error_guide.codes import CODES
from gateway.error_guide.events import EVENTS
from gateway.error_guide.guide import Guide

__all__ = ["CHECKS", "CODES", "EVENTS", "GUIDES", "Guide", "errors_page", "explain"]

CHECKS: Final[dict[str, Guide]] = {
    "gateway": Guide("The gateway does not answer, or did not start.", "Ledger and store are then checked directly."),
    "versions": Guide(
        "The versions that are running.", "The WAL bug of SQLite before 3.51.3 needs two writers; Farebox has one."
    ),
    "ledger": Guide(
        "Whether the ledger can be reached, and how fast it is: a call asks it about twice.",
        "More than 20 ms is noticeable: move it closer.",
    ),
    "ledger clock": Guide(
        "Windows begin by the ledger's clock, and keys expire by this machine's.",
        "Synchronise both machines' clocks with NTP.",
    ),
    "ledger policy": Guide(
        "Whether the ledger could lose data: eviction, persistence, durability.",
        "Redis: `maxmemory-policy noeviction`, `appendonly yes`.",
    ),
    "ledger spool": Guide(
        "Settlements on disk that have not reached the ledger yet.", "Do not delete the folder; they are booked soon."
    ),
    "outbox": Guide("Usage that has not reached the store yet.", "Bring the store back before it is full."),
    "store": Guide(
        "Whether the store can be reached, and how fast it is.", "Calls do not wait for it; reports and changes do."
    ),
    "store schema": Guide("Whether the database schema is that of this version.", "`farebox migrate`."),
    "store permissions": Guide("Whether the store is writable.", "Check the user's permissions, or the disk."),
    "settings": Guide("Settings that contradict each other.", "The message names both."),
    "models": Guide("How many models are configured.", "Without any, every call is a 404: fill `model_list`."),
    "access": Guide(
        "Who may make calls.", "`farebox keys create` creates the first key; from then on, every call needs one."
    ),
}

GUIDES: Final[dict[str, Guide]] = {**CHECKS, **EVENTS, **CODES}


def explain(name: str) -> str | None:
    """The guide to a code, event or check, formatted for a terminal; None for an unknown name."""
    entries = [guides[name] for guides in (CODES, EVENTS, CHECKS) if name in guides]
    return "\n".join(_formatted(name, guide) for guide in entries) or None


def _formatted(name: str, guide: Guide) -> str:
    label = f" ({guide.label})" if guide.label else ""
    return f"{name}{label}\n  {guide.meaning}\n  {guide.remedy}".replace("`", "")


_PAGE_HEAD: Final = """# Errors, log events and checks

Every error code, every log event at `warning` or above, and every check of `farebox doctor`: what it means and what to do. This
page is generated from the code, and a test fails if anything is missing. In a terminal:

```sh
farebox explain run_budget_busy
```

Errors are OpenAI's object `{"error": {"message", "type", "code", "param", "metadata"}}`; on `/v1/messages`, they are Anthropic's,
with the same `code` and `metadata`. If a retry would be refused in the same way, the answer carries `x-should-retry: false`, which the
OpenAI and Anthropic SDKs obey. Use `metadata.request_id` or `x-request-id` to find the call in the log.

The `metadata` of a refusal by a budget: `scope`, `scope_id` and `window` name the budget; `limit`, `settled`, `reserved`, `remaining` and
`needed` are amounts in its `unit` (tokens, usd, requests); `transient` is true if waiting helps, and `reset_at` is when the budget's
next window begins (ISO 8601, UTC), or null; `hint` says what to do; `workflow`, `run`, `step` and `request_id` are those of the call.
"""


def errors_page() -> str:
    """docs/errors.md."""
    parts = [_PAGE_HEAD, "\n## Error codes\n\n", _table("code", "status", CODES)]
    parts += ["\n## Log events\n\n", _table("event", "level", EVENTS)]
    parts += ["\n## Checks of `farebox doctor`\n\n| check | what is checked | what to do |\n|---|---|---|\n"]
    parts += [f"| {name} | {check.meaning} | {check.remedy} |\n" for name, check in CHECKS.items()]
    return "".join(parts)


def _anchor(name: str, guides: dict[str, Guide]) -> str:
    """A few names are both a code and an event; the anchor leads to the code."""
    return f'<a id="{name}"></a>' if guides is CODES or name not in CODES else ""


def _table(name_heading: str, label_heading: str, guides: dict[str, Guide]) -> str:
    rows = [
        f"| {_anchor(name, guides)}`{name}` | {guide.label} | {guide.meaning} | {guide.remedy} |\n"
        for name, guide in guides.items()
    ]
    return f"| {name_heading} | {label_heading} | what it means | what to do |\n|---|---|---|---|\n" + "".join(rows)
