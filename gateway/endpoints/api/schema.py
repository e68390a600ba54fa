"""Field types and ranges that bodies and queries of the control API share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from gateway.config.budgets import Count, usd_to_nano
from gateway.store.paging import CURSOR
from gateway.tags import NAME_IN_WORDS, VALUE
from policies.amounts import AMOUNT_MAX, NANO_USD_PER_USD, Limit
from policies.settings import ALLOCATION_STRATEGIES

LIST_MAX = 1_000
# More steps than this in one request are a mistake, and would block the process for too long.
STEPS_MAX = 500
_YEAR_MS_MIN, _YEAR_MS_MAX = 946_684_800_000, 4_102_444_800_000  # 2000 to 2100


class Strict(BaseModel):
    """Refuses unknown fields: a misspelt one would be ignored silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


def _as_nano(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("an amount in USD must be a number, such as 0.50")
    return usd_to_nano(value)


def _name(value: str) -> str:
    if not VALUE.match(value):
        raise ValueError(f"must be {NAME_IN_WORDS}")
    return value


def _instant(value: str) -> str:
    instant_ms(value)
    return value


def instant_ms(value: str) -> int:
    """Milliseconds since the epoch from an ISO 8601 date or time (UTC unless it says otherwise) or from their digits."""
    try:
        if value.isascii() and value.isdigit():
            instant = int(value[:16])
        else:
            parsed = datetime.fromisoformat(value)
            instant = int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        instant = 0
    if not _YEAR_MS_MIN <= instant <= _YEAR_MS_MAX:  # the end too, because `to` is exclusive
        raise ValueError("must be a date or time between 2000 and 2100, such as 2026-11-22 or 2026-11-22T09:30:00Z")
    return instant


_NAME, _LINE, _PRIORITY, _POSITION, _ROW = (
    r"^[A-Za-z0-9._:@/-]{1,128}$",
    r"^[^\x00-\x1f\x7f]{1,200}$",
    r"^(low|normal|high|critical)$",
    r"^[0-9]{0,18}$",  # what 64 bits hold in any case
    rf"^({CURSOR})?$",
)
_CURSOR_IN_WORDS = "the `next` of the page before, or left out for the first page"
PATTERNS_IN_WORDS = {
    _NAME: NAME_IN_WORDS,
    _LINE: "one line of 1 to 200 characters",
    _PRIORITY: "low, normal, high or critical",
    _POSITION: _CURSOR_IN_WORDS,
    _ROW: _CURSOR_IN_WORDS,
}
Name = Annotated[str, StringConstraints(pattern=_NAME), AfterValidator(_name)]
# A filter's value: a name as it was stored, or empty for calls without one.
Wanted = Annotated[str, StringConstraints(pattern=r"^[^\x00]{0,512}$")]
Text = Annotated[str, StringConstraints(max_length=100_000)]
Line = Annotated[str, StringConstraints(pattern=_LINE)]
Tokens = Annotated[int, Field(ge=0, le=AMOUNT_MAX, strict=True, description="Whole tokens.")]
Requests = Annotated[int, Field(ge=0, le=AMOUNT_MAX, strict=True, description="Calls.")]
Usd = Annotated[
    int,
    BeforeValidator(_as_nano),
    WithJsonSchema(
        {"type": "number", "minimum": 0, "maximum": AMOUNT_MAX / NANO_USD_PER_USD, "description": "US dollars."}
    ),
]
Instant = Annotated[
    str,
    StringConstraints(max_length=40),
    AfterValidator(_instant),
    WithJsonSchema({"type": "string", "description": "ISO 8601 date or time (UTC), or milliseconds since 1970."}),
]
Priority = Annotated[str, StringConstraints(pattern=_PRIORITY)]
Strategy = Literal["equal", "proportional", "adaptive", "priority"]
assert Strategy.__args__ == ALLOCATION_STRATEGIES  # type: ignore[attr-defined]  # noqa: S101 - one list of them
Share = Annotated[float, Field(ge=0, le=10)]


class ProjectQuery(Strict):
    project: Name = "default"


class ListQuery(ProjectQuery):
    limit: Annotated[int, Field(ge=1, le=LIST_MAX)] = 50
    cursor: Annotated[str, StringConstraints(pattern=_POSITION)] | None = Field(
        default=None, description="The `next` of the page before."
    )


class RowsQuery(ListQuery):
    """For lists that grow while they are read: their pages begin behind a row."""

    cursor: Annotated[str, StringConstraints(pattern=_ROW)] | None = Field(
        default=None, description="The `next` of the page before."
    )


class LimitBody(Strict):
    """A limit in any of three units."""

    tokens: Count | None = None
    usd: Usd | None = None
    requests: Count | None = None

    def limit(self) -> Limit:
        return Limit(self.tokens, self.usd, self.requests)


def _of_tokens(value: Any) -> Any:
    return {"tokens": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


# A number alone stands for tokens.
Budgeted = Annotated[LimitBody, BeforeValidator(_of_tokens, json_schema_input_type=LimitBody | Tokens)]


class NoBody(Strict):
    """For requests without a body."""


def in_ms(value: str | None) -> int | None:
    return None if value is None else instant_ms(value)


def page_start(cursor: str | None) -> int:
    return int(cursor or 0)


def paged(items: list[Any], query: ListQuery) -> tuple[tuple[Any, ...], str | None]:
    """One page of a list that is at hand as a whole, and the cursor of the next."""
    start = page_start(query.cursor)
    end = start + query.limit
    return tuple(items[start:end]), str(end) if end < len(items) else None
