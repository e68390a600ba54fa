"""Budgets as the configuration file and the control API write them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from gateway.tags import NAME_IN_WORDS, VALUE
from policies.amounts import AMOUNT_MAX, NANO_USD_PER_USD, Limit
from policies.budgets import Budget, HoldKind, Mode, OnOutage, Scope, Window
from policies.pressure import DEFAULT_LADDER, Ladder, Rung, ladder_items, parse_ladder
from policies.windows import WindowError, zone_of


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def usd_to_nano(value: object) -> int:
    """Converts money from a file, a header or an API body to whole nano-USD. At least 0, at most 2^53 − 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise ValueError("an amount in USD must be a number, such as 0.50")
    try:
        nano = Decimal(str(value)) * NANO_USD_PER_USD
    except ArithmeticError as error:
        raise ValueError(f"{value!r} is not an amount in USD, such as 0.50") from error
    if not nano.is_finite() or nano < 0:
        raise ValueError(f"an amount in USD must be 0 or more, not {value}")
    if nano > AMOUNT_MAX:
        raise ValueError(f"an amount in USD may be at most {AMOUNT_MAX / NANO_USD_PER_USD:,.0f}, not {value}")
    if 0 < nano < 1:
        raise ValueError(f"{value} USD is less than 0.000000001, the smallest amount that is kept")
    return int(nano)


# The characters of names (gateway/tags.py, keys and projects alike), and the wildcards.
_GLOB: Final = re.compile(r"(?:[A-Za-z0-9._:@/*?-]|\[!?[A-Za-z0-9._:@/-]+\])+\Z")


def _glob(value: str) -> str:
    if not value:
        raise ValueError("must be a name, or a pattern of names: * is all of them")
    if not _GLOB.match(value):
        raise ValueError(
            "matches no name: names have letters, digits and . _ : @ / -, and a pattern has *, ? and [abc] beside them"
        )
    return value


def _project(value: str) -> str:
    if not VALUE.match(value):
        raise ValueError(f"must be {NAME_IN_WORDS}")
    return value


Glob = Annotated[str, Field(max_length=256, json_schema_extra={"minLength": 1}), AfterValidator(_glob)]
UNITS: Final = ("tokens", "usd", "requests")
LIMITLESS: Final = "a budget needs at least one of tokens, usd, requests"
Count = Annotated[int, Field(ge=0, le=AMOUNT_MAX, strict=True)]


def _ladder(value: object) -> Ladder:
    if isinstance(value, Ladder):
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(rung, (str, dict)) for rung in value):
        raise ValueError("must be a list of rungs, such as [compress, {route: 0.2}, clamp, refuse]")
    return parse_ladder(value)


_SHARE: Final = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
# Rungs by name; a rung with a share is also used before calls stop fitting.
Pressure = Annotated[
    Ladder,
    PlainValidator(_ladder),
    PlainSerializer(ladder_items),
    WithJsonSchema(
        {
            "type": "array",
            "uniqueItems": True,
            "items": {
                "anyOf": [
                    {"type": "string", "enum": [rung.value for rung in Rung]},
                    {
                        "type": "object",
                        "properties": {rung.value: _SHARE for rung in Rung},
                        "additionalProperties": False,
                        "minProperties": 1,
                        "maxProperties": 1,
                    },
                ]
            },
        }
    ),
]


class BudgetConfig(Strict):
    """A budget of the file or of `/api/budgets`. At least one of tokens, usd and requests."""

    scope: Scope
    match: Glob = "*"
    tokens: Count | None = None
    usd: Annotated[int, BeforeValidator(usd_to_nano)] | None = Field(default=None, description="USD; nano-USD inside")
    requests: Count | None = None
    window: Window | None = None
    on_pressure: Pressure = Field(
        default=DEFAULT_LADDER, json_schema_extra={"default": [rung.value for rung in DEFAULT_LADDER.rungs]}
    )
    hold: HoldKind = HoldKind.WORST_CASE
    on_outage: OnOutage = OnOutage.REFUSE
    mode: Mode = Mode.ENFORCE
    project: Annotated[str, AfterValidator(_project)] | None = None
    timezone: str = "UTC"
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = 10.0

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetConfig:
        if self.tokens is None and self.usd is None and self.requests is None:
            raise ValueError(LIMITLESS)
        return self

    @field_validator("window")
    @classmethod
    def _window_of_the_scope(cls, value: Window | None, info: ValidationInfo) -> Window | None:
        scope = info.data.get("scope")
        if scope is None or value is None:
            return value
        per_run = scope in (Scope.RUN, Scope.STEP)
        if per_run and value is not Window.RUN:
            raise ValueError(f"a budget on a {scope} lasts for the run: leave window out, or put it on the workflow")
        if not per_run and value is Window.RUN:
            raise ValueError(
                f"window 'run' is for scope run or step; for scope {scope} use total, minute, hour, day or month"
            )
        return value

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            zone_of(value)
        except WindowError as error:
            raise ValueError(f"no time zone {value!r}; use a name such as Europe/Berlin") from error
        return value

    def budget(self) -> Budget:
        default = Window.RUN if self.scope in (Scope.RUN, Scope.STEP) else Window.TOTAL
        return Budget(
            scope=self.scope,
            limit=Limit(self.tokens, self.usd, self.requests),
            match=self.match,
            window=self.window or default,
            on_pressure=self.on_pressure,
            hold=self.hold,
            on_outage=self.on_outage,
            mode=self.mode,
            project=self.project,
            timezone=self.timezone,
            wait_ms=int(self.wait_seconds * 1000),
        )
