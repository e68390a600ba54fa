"""The workflow, run, step and agent of a call, from every source, in order of precedence.

These are headers, the path prefix, body metadata, W3C baggage, the header in which a known tool numbers its conversations (as
run id, if the workflow is known), and the key's defaults. Tags only narrow what the key grants: key and project come from the
key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote

from gateway.errors import BadRequest
from policies.amounts import AMOUNT_MAX, NANO_USD_PER_USD, UNLIMITED, Limit
from policies.intents import Intent
from policies.values import value_class

# Clients and proxies remove `.` and `..` from the paths with which names are looked up.
VALUE: Final = re.compile(r"(?!(?:.{0,127}/)?\.\.?(?:/|\Z))[A-Za-z0-9._:@/-]{1,128}\Z")
NAME_IN_WORDS: Final = "1 to 128 letters, digits and . _ : @ / -, without . or .. alone between slashes"
PRIORITIES: Final = ("low", "normal", "high", "critical")
OPTIONS: Final = ("no-compress", "no-route", "no-clamp")
# Decimal itself would accept underscores, blanks and digits of other scripts.
_USD: Final = re.compile(r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")
_INTENTS: Final = tuple(Intent)
DEFAULT_STEP: Final = "default"

PARENT_HEADER: Final = "x-workflow-parent-run-id"
_NAMES: Final = {
    "workflow": "x-workflow-id",
    "run": "x-workflow-run-id",
    "step": "x-workflow-step",
    "agent": "x-workflow-agent",
    "user": "x-workflow-user",
    "parent_run": PARENT_HEADER,
}
_NEED_A_WORKFLOW: Final = (
    "x-workflow-run-id",
    PARENT_HEADER,
    "x-workflow-step",
    "x-workflow-budget-tokens",
    "x-workflow-budget-usd",
)
_METADATA: Final = {"workflow": "workflow_id", "run": "run_id", "step": "step", "agent": "agent"}
_BAGGAGE: Final = {
    "workflow": "workflow.id",
    "run": "workflow.run.id",
    "step": "workflow.step",
    "agent": "workflow.agent",
}
_SESSION_HEADERS: Final = (
    "x-litellm-trace-id",
    "x-litellm-session-id",
    "helicone-session-id",
    "x-portkey-trace-id",
    "x-session-id",
    "x-claude-code-session-id",
    "session_id",
    "session-id",
)
_PATH_KEYS: Final = {"w": "workflow", "r": "run", "s": "step"}


@value_class
class Tags:
    """`workflow` is None for an untagged call, and then no other tag counts. `run` is None for an implicit run."""

    workflow: str | None = None
    run: str | None = None
    step: str = DEFAULT_STEP
    agent: str | None = None
    user: str | None = None
    parent_run: str | None = None
    intent: str | None = None
    priority: str = "normal"
    budget: Limit = UNLIMITED
    options: frozenset[str] = frozenset()

    @property
    def is_tagged(self) -> bool:
        return self.workflow is not None


UNTAGGED: Final = Tags()


def split_path(path: str) -> tuple[dict[str, str], str]:
    """Split `/w/{workflow}/r/{run}/s/{step}/v1/…` into its tags and the remaining path; other paths are unchanged."""
    tags: dict[str, str] = {}
    remaining = path
    for letter, name in _PATH_KEYS.items():
        if not remaining.startswith(f"/{letter}/") or (letter != "w" and not tags):
            continue
        value, slash, remainder = remaining[3:].partition("/")
        if not slash:
            break
        if not VALUE.match(value):
            raise BadRequest(f"Path segment /{letter}/: {value[:40]!r} is not {NAME_IN_WORDS}", code="invalid_path")
        tags[name] = value
        remaining = "/" + remainder
    return tags, remaining


def read_tags(
    headers: Mapping[str, str], path_tags: Mapping[str, str], metadata: Any, defaults: Mapping[str, str]
) -> Tags:
    """Raises `BadRequest`, which names the header or field with the invalid value."""
    tags = _from_headers(headers)
    _fill(tags, path_tags)
    if metadata is not None:
        _fill(tags, _from_metadata(metadata, "workflow" in tags))
    if "baggage" in headers:
        _fill(tags, _from_baggage(headers["baggage"]))
    if "workflow" not in tags and "workflow" in defaults:
        tags["workflow"] = defaults["workflow"]
    if "workflow" not in tags:
        return _untagged(headers)
    if "run" not in tags:
        _fill(tags, _from_session(headers))
    _fill(tags, defaults)
    return Tags(
        workflow=tags["workflow"],
        run=tags.get("run"),
        step=tags.get("step", DEFAULT_STEP),
        agent=tags.get("agent"),
        user=tags.get("user"),
        parent_run=tags.get("parent_run"),
        intent=_choice(headers, "x-workflow-intent", _INTENTS),
        priority=_choice(headers, "x-workflow-priority", PRIORITIES) or defaults.get("priority", "normal"),
        budget=_budget(headers),
        options=_options(headers),
    )


def echoed_tags(headers: Mapping[str, str], path_tags: Mapping[str, str]) -> Tags:
    """The tags in headers and path of a request that is refused before its body is read; untagged if they are invalid."""
    try:
        return read_tags(headers, path_tags, None, {})
    except BadRequest:
        return UNTAGGED


def checked(value: str, name: str) -> str:
    if not VALUE.match(value):
        raise BadRequest.header(name, f"{value[:40]!r} is not {NAME_IN_WORDS}")
    return value


def _untagged(headers: Mapping[str, str]) -> Tags:
    """A run, a parent, a step or a budget without a workflow would be ignored silently, so it is refused."""
    for name in _NEED_A_WORKFLOW:
        if name in headers:
            raise BadRequest.header(name, "needs x-workflow-id beside it")
    return UNTAGGED


def _fill(tags: dict[str, str], additional: Mapping[str, str]) -> None:
    for name, value in additional.items():
        tags.setdefault(name, value)


def _from_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: checked(headers[header], header) for name, header in _NAMES.items() if header in headers}


def _from_metadata(metadata: Any, tagged: bool) -> dict[str, str]:
    """On an untagged call the metadata is the client's own; an invalid value is only an error together with a workflow."""
    if not isinstance(metadata, dict):
        return {}
    tagged = tagged or "workflow_id" in metadata
    tags: dict[str, str] = {}
    for name, key in _METADATA.items():
        value = metadata.get(key)
        if isinstance(value, str) and VALUE.match(value):
            tags[name] = value
        elif value is not None and tagged:
            raise BadRequest.field(f"metadata.{key}", f"must be {NAME_IN_WORDS}")
    return tags


def _from_baggage(baggage: str) -> dict[str, str]:
    pairs = dict(item.strip().partition(";")[0].partition("=")[::2] for item in baggage[:8192].split(","))
    stripped = {key.strip(): unquote(value.strip()) for key, value in pairs.items()}
    return {name: checked(stripped[key], f"baggage ({key})") for name, key in _BAGGAGE.items() if key in stripped}


def _from_session(headers: Mapping[str, str]) -> dict[str, str]:
    """Other tools' session ids follow other rules: one that does not fit ours is ignored."""
    for name in _SESSION_HEADERS:
        value = headers.get(name)
        if value is not None and VALUE.match(value):
            return {"run": value}
    return {}


def _choice(headers: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    value = headers.get(name)
    if value is None or value in choices:
        return value
    raise BadRequest.header(name, f"{value[:40]!r} is none of {', '.join(choices)}")


def _budget(headers: Mapping[str, str]) -> Limit:
    tokens = headers.get("x-workflow-budget-tokens")
    usd = headers.get("x-workflow-budget-usd")
    if tokens is None and usd is None:
        return UNLIMITED
    return Limit(_tokens(tokens), _nano_usd(usd))


def _tokens(value: str | None) -> int | None:
    if value is None:
        return None
    name = "x-workflow-budget-tokens"
    if not (value.isascii() and value.isdigit()):
        raise BadRequest.header(name, f"{value[:40]!r} is not a whole number of tokens, such as 20000")
    if len(value) > 16 or int(value) > AMOUNT_MAX:
        raise BadRequest.header(name, f"{value[:40]!r} is more than a budget may have, {AMOUNT_MAX}")
    return int(value)


def _nano_usd(value: str | None) -> int | None:
    if value is None:
        return None
    name = "x-workflow-budget-usd"
    if len(value) > 32 or not _USD.match(value):
        raise BadRequest.header(name, f"{value[:40]!r} is not an amount in USD, such as 0.50")
    try:
        nano = Decimal(value) * NANO_USD_PER_USD
    except ArithmeticError:  # an exponent beyond any amount of money
        nano = Decimal("Infinity")
    if nano > AMOUNT_MAX:
        raise BadRequest.header(name, f"{value!r} is more than a budget may have, {AMOUNT_MAX // NANO_USD_PER_USD}")
    if 0 < nano < 1:
        raise BadRequest.header(name, f"{value!r} is less than 0.000000001, the smallest amount that is kept")
    return int(nano)


def _options(headers: Mapping[str, str]) -> frozenset[str]:
    value = headers.get("x-workflow-options")
    if value is None:
        return frozenset()
    options = frozenset(option.strip() for option in value.split(",") if option.strip())
    unknown = sorted(options - set(OPTIONS))
    if unknown:
        raise BadRequest.header("x-workflow-options", f"{unknown[0][:40]!r} is none of {', '.join(OPTIONS)}")
    return options
