"""What every error code, every log event at warning or above and every check of `farebox doctor` means, and what to do.

`farebox explain NAME` tells one, docs/errors.md is made from all of them, and a test holds the tables to the code.
"""

from __future__ import annotations

from typing import Final

from gateway.error_guide.codes import CODES
from gateway.error_guide.events import EVENTS
from gateway.error_guide.guide import Guide

__all__ = ["ALL", "CHECKS", "CODES", "EVENTS", "Guide", "document", "explain"]

CHECKS: Final[dict[str, Guide]] = {
    "gateway": Guide("The gateway does not answer, or did not come up.", "Ledger and store are looked at one by one."),
    "versions": Guide("What runs here.", "SQLite's WAL fault of before 3.51.3 needs two writers; Farebox has one."),
    "ledger": Guide(
        "Reach and speed of the ledger: a call asks it about twice.", "Above 20 ms it is felt: bring it nearer."
    ),
    "ledger clock": Guide(
        "Windows begin by the ledger's clock, keys expire by this machine's.", "Set both machines' clocks by NTP."
    ),
    "ledger policy": Guide(
        "Whether the ledger may forget: eviction, persistence, durability.",
        "Redis: `maxmemory-policy noeviction`, `appendonly yes`.",
    ),
    "ledger spool": Guide(
        "Settlements on disk that the ledger does not have yet.", "Do not throw the folder away; they are booked soon."
    ),
    "outbox": Guide("Usage that the store does not have yet.", "Bring the store back before it is full."),
    "store": Guide("Reach and speed of the store.", "Calls do not wait for it; reports and changes do."),
    "store schema": Guide("Whether the tables are those of this version.", "`farebox migrate`."),
    "store permissions": Guide("Whether the store can be written to.", "Look at the user's rights, or at the disk."),
    "settings": Guide("Settings that contradict each other.", "The finding names both."),
    "models": Guide("How many models there are.", "Without any, every call is a 404: fill `model_list`."),
    "access": Guide("Who may call.", "`farebox keys create` makes the first key; from then on everybody needs one."),
}

ALL: Final[dict[str, Guide]] = {**CHECKS, **EVENTS, **CODES}


def explain(name: str) -> str | None:
    """The guide to a code, event or check as people read it in a terminal; None for a name that nobody says."""
    found = [guides[name] for guides in (CODES, EVENTS, CHECKS) if name in guides]
    return "\n".join(_explained(name, guide) for guide in found) or None


def _explained(name: str, guide: Guide) -> str:
    told = f" ({guide.told})" if guide.told else ""
    return f"{name}{told}\n  {guide.means}\n  {guide.do}".replace("`", "")


_HEAD: Final = """# Errors, log events and checks

Every error code, every log event at `warning` or above, and every check of `farebox doctor`: what it means and what to do. The
page is made from the code, and a test fails when something is missing. In a terminal:

```sh
farebox explain run_budget_busy
```

Errors are the OpenAI object `{"error": {"message", "type", "code", "param", "metadata"}}`; on `/v1/messages` the Anthropic one,
with the same `code` and `metadata`. A refusal that would be the same again carries `x-should-retry: false`, which the OpenAI and
Anthropic SDKs obey. `metadata.request_id` and `x-request-id` find the call in the log.

The `metadata` of a budget's refusal: `scope`, `scope_id` and `window` name the budget; `limit`, `settled`, `reserved`, `remaining` and
`needed` are amounts in its `unit` (tokens, usd, requests); `transient` is true where waiting helps, and `reset_at` is when the budget's
window begins anew (ISO 8601, UTC), or null; `hint` says what to do; `workflow`, `run`, `step` and `request_id` are the call's.
"""


def document() -> str:
    """docs/errors.md."""
    parts = [_HEAD, "\n## Error codes\n\n", _table("code", "status", CODES)]
    parts += ["\n## Log events\n\n", _table("event", "level", EVENTS)]
    parts += ["\n## Checks of `farebox doctor`\n\n| check | what is looked at | what to do |\n|---|---|---|\n"]
    parts += [f"| {name} | {one.means} | {one.do} |\n" for name, one in CHECKS.items()]
    return "".join(parts)


def _anchor(name: str, guides: dict[str, Guide]) -> str:
    """A few names are both a code and an event; the code has the anchor."""
    return f'<a id="{name}"></a>' if guides is CODES or name not in CODES else ""


def _table(what: str, told: str, guides: dict[str, Guide]) -> str:
    rows = [
        f"| {_anchor(name, guides)}`{name}` | {one.told} | {one.means} | {one.do} |\n" for name, one in guides.items()
    ]
    return f"| {what} | {told} | what it means | what to do |\n|---|---|---|---|\n" + "".join(rows)
