"""The ladder: what may be done to a call when a budget runs short, in which order, and from what level on.

A rung without a share is used when the call does not fit. A rung with a share is also used earlier, as soon as no more than
that share of a limit is left: `[{compress: 0.5}, {route: 0.2}, clamp, refuse]` compresses from the second half of the budget
on and prefers cheaper models in the last fifth. `compress` without a share adds nothing early: calls are compressed as the
settings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from itertools import takewhile
from typing import Final

from policies.amounts import UNITS, Limit, Unit
from policies.reservation import Balance, Demand, Hold, Refused
from policies.values import value_class


class Rung(StrEnum):
    """What may be done to a call that does not fit, in the order that the budget declares."""

    COMPRESS = "compress"
    ROUTE = "route"
    CLAMP = "clamp"
    WAIT = "wait"
    REFUSE = "refuse"


@value_class
class Ladder:
    """`early` has the rungs with a share, in order; they are also in `rungs`. `tried` has those that are tried for a call that does not
    fit: the ones before a `refuse` without a share."""

    rungs: tuple[Rung, ...]
    early: tuple[tuple[Rung, float], ...] = ()
    tried: tuple[Rung, ...] = field(init=False)

    def __post_init__(self) -> None:
        early = dict(self.early)
        reached = takewhile(lambda rung: rung is not Rung.REFUSE or rung in early, self.rungs)
        object.__setattr__(self, "tried", tuple(rung for rung in reached if rung is not Rung.REFUSE))

    def share_of(self, rung: Rung) -> float | None:
        return next((share for early_rung, share in self.early if early_rung is rung), None)


DEFAULT_LADDER: Final = Ladder((Rung.COMPRESS, Rung.ROUTE, Rung.CLAMP, Rung.REFUSE))
LadderItem = str | Mapping[str, float]  # `clamp`, or `{clamp: 0.2}`


def parse_ladder(items: Iterable[LadderItem]) -> Ladder:
    """Raises ValueError for an unknown or repeated rung, and for a share that is not above 0 and at most 1."""
    rungs: list[Rung] = []
    early: list[tuple[Rung, float]] = []
    for item in items:
        name, share = (item, None) if isinstance(item, str) else _parse_item_with_share(item)
        if name not in set(Rung):
            raise ValueError(f"{name!r} is no rung; there are {', '.join(Rung)}")
        rung = Rung(name)
        if rung in rungs:
            raise ValueError(f"{name} stands on the ladder twice")
        rungs.append(rung)
        if share is not None:
            early.append((rung, share))
    return Ladder(tuple(rungs), tuple(early))


def _parse_item_with_share(item: Mapping[str, float]) -> tuple[str, float]:
    if len(item) != 1:
        raise ValueError("a rung with a share is written as one name and one number, such as {compress: 0.3}")
    ((name, share),) = item.items()
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"the share of {name} must be above 0 and at most 1, not {share!r}")
    return name, float(share)


def ladder_items(ladder: Ladder) -> list[str | dict[str, float]]:
    """The form in which people write it and the store keeps it."""
    shares = dict(ladder.early)
    return [{rung.value: shares[rung]} if rung in shares else rung.value for rung in ladder.rungs]


@value_class
class TightestLimit:
    """The limit of a chain with the smallest share left, before the current call."""

    share: float  # 0 to 1
    account: str
    unit: Unit
    balance: Balance

    @property
    def remaining(self) -> int:
        return max(0, self.balance.remaining(self.unit) or 0)


def tightest_limit(holds: Sequence[Hold], balances: Sequence[Balance]) -> TightestLimit | None:
    """None if nothing is limited. `balances` are the ledger's, in the order of the holds. Observed accounts are left out."""
    tightest: TightestLimit | None = None
    for hold, balance in zip(holds, balances, strict=True):
        if not hold.enforce:
            continue
        limit = limit_in_force(hold, balance)
        for unit in UNITS:
            unit_limit = limit.of(unit)
            if unit_limit is None:
                continue
            effective_balance = Balance(hold.account, limit, balance.settled, balance.reserved, balance.gate)
            share = max(0, effective_balance.remaining(unit) or 0) / unit_limit if unit_limit else 0.0
            if tightest is None or share < tightest.share:
                tightest = TightestLimit(share, hold.account, unit, effective_balance)
    return tightest


def prompt_room(refused: Refused, demand: Demand, answer_tokens: int) -> int:
    """The prompt tokens that fit into what is left, besides answers of `answer_tokens` each. 0 or less: no prompt is short
    enough, for example because requests are short or a prompt costs nothing.

    For money it is estimated from what this prompt costs, which is exact if all its tokens cost the same.
    """
    output_tokens = demand.choices * answer_tokens
    if refused.unit == "tokens":
        return (refused.balance.remaining("tokens") or 0) - output_tokens
    if refused.unit == "nano_usd" and demand.prompt_nano_usd:
        prompt_nano_usd = (
            refused.balance.remaining("nano_usd") or 0
        ) - output_tokens * demand.output_nano_usd_per_token
        return prompt_nano_usd * demand.prompt_tokens // demand.prompt_nano_usd
    return 0


def limit_in_force(hold: Hold, balance: Balance) -> Limit:
    """The limit that applies, from the hold and what the ledger knows: an operator's override, and what callers have
    tightened the account to. Its balance reports the two as one limit.

    That is taken for the tightened one if this call tightens the account, otherwise for an override.
    """
    limit = hold.limit.replaced_by(balance.limit) if hold.tighten.is_unlimited else hold.limit
    return limit.tightened_by(balance.limit).tightened_by(hold.tighten)
