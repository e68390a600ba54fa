"""The units of budgets: tokens, nano-USD and requests, always integers."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

from policies.values import value_class

Unit = Literal["tokens", "nano_usd", "requests"]
UNITS: Final[tuple[Unit, ...]] = ("tokens", "nano_usd", "requests")

# Lua and JSON carry numbers as doubles, which are exact up to 2^53: 9.0 M USD in nano-USD.
AMOUNT_MAX: Final = 2**53 - 1
NANO_USD_PER_USD: Final = 1_000_000_000


@value_class
class Amount:
    """An amount of every unit. Components may be negative only in adjustments."""

    tokens: int = 0
    nano_usd: int = 0
    requests: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.nano_usd + other.nano_usd, self.requests + other.requests)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.nano_usd - other.nano_usd, self.requests - other.requests)

    def excess_over(self, other: Amount) -> Amount:
        """What is above the other, unit by unit; never negative."""
        if self.tokens <= other.tokens and self.nano_usd <= other.nano_usd and self.requests <= other.requests:
            return ZERO
        return Amount(
            max(0, self.tokens - other.tokens),
            max(0, self.nano_usd - other.nano_usd),
            max(0, self.requests - other.requests),
        )

    def unitwise_max(self, other: Amount) -> Amount:
        """The larger of both, unit by unit."""
        return Amount(
            max(self.tokens, other.tokens), max(self.nano_usd, other.nano_usd), max(self.requests, other.requests)
        )

    def of(self, unit: Unit) -> int:
        if unit == "tokens":
            return self.tokens
        return self.nano_usd if unit == "nano_usd" else self.requests

    def values(self) -> tuple[int, int, int]:
        """In the order of `UNITS`."""
        return self.tokens, self.nano_usd, self.requests


ZERO: Final = Amount()


@value_class
class Limit:
    """The most that a scope may use, per unit; `None` leaves that unit unlimited. 0 ≤ value ≤ 2^53 − 1."""

    tokens: int | None = None
    nano_usd: int | None = None
    requests: int | None = None

    def of(self, unit: Unit) -> int | None:
        if unit == "tokens":
            return self.tokens
        return self.nano_usd if unit == "nano_usd" else self.requests

    def values(self) -> tuple[int | None, int | None, int | None]:
        """In the order of `UNITS`."""
        return self.tokens, self.nano_usd, self.requests

    def tightened_by(self, other: Limit) -> Limit:
        """The smaller of both, unit by unit."""
        return Limit(
            _lower_limit(self.tokens, other.tokens),
            _lower_limit(self.nano_usd, other.nano_usd),
            _lower_limit(self.requests, other.requests),
        )

    def capped_by(self, cap: Limit) -> Limit:
        """This limit, but at most `cap`, unit by unit; unlimited units stay unlimited."""
        smaller = self.tightened_by(cap)
        return Limit(*(None if self.of(unit) is None else smaller.of(unit) for unit in UNITS))

    def replaced_by(self, other: Limit) -> Limit:
        """`other` in the units that it limits, this limit in the rest."""
        return Limit(
            self.tokens if other.tokens is None else other.tokens,
            self.nano_usd if other.nano_usd is None else other.nano_usd,
            self.requests if other.requests is None else other.requests,
        )

    @property
    def is_unlimited(self) -> bool:
        return self.tokens is None and self.nano_usd is None and self.requests is None


UNLIMITED: Final = Limit()


@lru_cache(maxsize=4096)
def limit_of(tokens: int | None, nano_usd: int | None, requests: int | None) -> Limit:
    """The one `UNLIMITED` if no unit is limited, because policies compare it by identity. Cached: there are many accounts but few
    limits, and a shared value costs a third of a new one."""
    limit = Limit(tokens, nano_usd, requests)
    return UNLIMITED if limit.is_unlimited else limit


def usd(nano_usd: int) -> float:
    """For people and for JSON; budgets are compared in nano-USD."""
    return nano_usd / NANO_USD_PER_USD


def usd_text(nano_usd: int) -> str:
    """The amount in USD: plain digits, exact, as short as possible."""
    dollars, nano = divmod(abs(nano_usd), NANO_USD_PER_USD)
    return f"{'-' if nano_usd < 0 else ''}{dollars}.{nano:09}".rstrip("0").rstrip(".")


def _lower_limit(limit: int | None, other_limit: int | None) -> int | None:
    if limit is None or other_limit is None:
        return limit if other_limit is None else other_limit
    return min(limit, other_limit)
