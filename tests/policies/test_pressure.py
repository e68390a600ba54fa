from __future__ import annotations

from typing import Any

import pytest

from policies.amounts import UNLIMITED, Amount, Limit
from policies.pressure import (
    DEFAULT_LADDER,
    Rung,
    ladder_items,
    limit_in_force,
    parse_ladder,
    prompt_room,
    tightest_limit,
)
from policies.reservation import Balance, Demand, Hold, Refusal, Refused

RUN = Hold("run/r", Limit(tokens=1000))


def balance(account: str, tokens: int, limit: Limit = UNLIMITED, **amounts: int) -> Balance:
    return Balance(account, limit, Amount(tokens, amounts.get("nano_usd", 0)), Amount(amounts.get("reserved", 0)))


@pytest.mark.parametrize(
    "ladder",
    [
        [],
        ["refuse"],
        ["clamp", "compress", "route", "wait", "refuse"],
        [{"compress": 0.5}, {"route": 0.2}, "clamp", {"refuse": 0.05}],
        [{"wait": 1.0}],
    ],
)
def test_ladder_of_any_rungs_in_any_order_round_trips(ladder: list[Any]) -> None:
    assert ladder_items(parse_ladder(ladder)) == ladder
    assert [rung.value for rung in parse_ladder(ladder).rungs] == [
        item if isinstance(item, str) else next(iter(item)) for item in ladder
    ]


def test_only_rungs_with_a_share_are_taken_early() -> None:
    ladder = parse_ladder([{"compress": 0.5}, "clamp"])
    assert (ladder.share_of(Rung.COMPRESS), ladder.share_of(Rung.CLAMP)) == (0.5, None)
    assert DEFAULT_LADDER.early == ()


@pytest.mark.parametrize(
    ("ladder", "words"),
    [
        (["dance"], "'dance' is no rung; there are compress, route, clamp, wait, refuse"),
        (["clamp", {"clamp": 0.5}], "clamp stands on the ladder twice"),
        ([{"clamp": 0}], "share of clamp must be above 0 and at most 1, not 0"),
        ([{"clamp": 1.5}], "not 1.5"),
        ([{"clamp": True}], "not True"),
        ([{"clamp": "much"}], "not 'much'"),
        ([{"clamp": 0.1, "wait": 0.2}], "one name and one number"),
        ([{}], "one name and one number"),
    ],
)
def test_invalid_ladder_is_refused_with_a_reason(ladder: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_ladder(ladder)


def test_tightest_limit_is_the_one_with_the_smallest_remaining_share() -> None:
    key = Hold("key/k", Limit(tokens=100_000, nano_usd=1000))
    tightest = tightest_limit((RUN, key), (balance("run/r", 500, reserved=100), balance("key/k", 600, nano_usd=900)))
    assert tightest is not None
    assert (tightest.account, tightest.unit, tightest.share, tightest.remaining) == ("key/k", "nano_usd", 0.1, 100)


@pytest.mark.parametrize(
    ("limit", "used", "share"), [(1000, 0, 1.0), (1000, 1000, 0.0), (1000, 1300, 0.0), (0, 0, 0.0)]
)
def test_remaining_share_is_between_0_and_1(limit: int, used: int, share: float) -> None:
    tightest = tightest_limit((Hold("run/r", Limit(tokens=limit)),), (balance("run/r", used),))
    assert tightest is not None
    assert tightest.share == share


def test_unlimited_and_observed_accounts_are_never_the_tightest_limit() -> None:
    holds = (Hold("run/r"), Hold("run/r~observe", Limit(tokens=1), enforce=False))
    assert tightest_limit(holds, (balance("run/r", 5), balance("run/r~observe", 5))) is None


TOKENS = Limit(tokens=1000)


@pytest.mark.parametrize(
    ("hold", "reported", "tokens"),
    [
        (Hold("run/r", TOKENS), UNLIMITED, 1000),
        (Hold("run/r", TOKENS), Limit(tokens=300), 300),  # tightened by an earlier call, or set lower
        (Hold("run/r", TOKENS), Limit(tokens=5000), 5000),  # raised by an operator
        (Hold("run/r", TOKENS, Limit(tokens=5000)), Limit(tokens=5000), 1000),  # a caller cannot loosen a limit
        (Hold("run/r", TOKENS, Limit(tokens=200)), UNLIMITED, 200),
    ],
)
def test_limit_in_force_combines_budget_tightening_and_override(hold: Hold, reported: Limit, tokens: int) -> None:
    assert limit_in_force(hold, balance("run/r", 0, reported)).tokens == tokens


@pytest.mark.parametrize(
    ("unit", "demand", "answer_tokens", "room"),
    [
        ("tokens", Demand(900, 500, 500), 200, 500),
        ("tokens", Demand(900, 500, 500, choices=3), 200, 100),
        ("tokens", Demand(900, 500, 500), 700, 0),
        ("tokens", Demand(900, 500, 500), 800, -100),
        ("nano_usd", Demand(300, 500, 500, 1500, 20), 100, 600),
        ("nano_usd", Demand(300, 500, 500, 1500, 20), 300, -200),
        ("nano_usd", Demand(300, 500, 500, 0, 20), 1, 0),
        ("requests", Demand(300, 500, 500, 1500, 20), 1, 0),
    ],
)
def test_prompt_room_is_what_the_answer_leaves_of_the_limit(
    unit: Any, demand: Demand, answer_tokens: int, room: int
) -> None:
    left = Balance("run/r", Limit(1000, 6000, 9), Amount(200, 500, 9), Amount(100, 500))
    assert prompt_room(Refused(Refusal.EXCEEDED, "run/r", unit, 1, left, 0), demand, answer_tokens) == room
