"""Up the ladder against a real book of accounts: what is tried, how often, against which shortage, and with which aim."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.call import Call, Principal
from gateway.pipeline.climbing import Climbing
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import UNLIMITED, Limit
from policies.book import Book, DictStorage
from policies.budgets import Chain, Link, Scope, Window
from policies.pressure import Rung, parse_ladder
from policies.reservation import Decision, Demand, Gate, Granted, Hold, Refused, Reserve

PRICES = {"large": (50, 200), "medium": (5, 20), "small": (1, 4)}  # nano-USD a token of the prompt and of the answer
NEXT = {"large": "medium", "medium": "small"}


class World:
    """A call of one run and step, its ledger, and a planner that can shorten its prompt down to `shortest` tokens."""

    def __init__(
        self,
        ladder: Sequence[str],
        *,
        run: Limit = UNLIMITED,
        step: Limit = UNLIMITED,
        prompt: int = 300,
        shortest: int = 300,
        cap: int | None = 100,
        usual: int = 50,
        wait_ms: int = 0,
        options: Sequence[str] = (),
        media: int = 0,
    ) -> None:
        links = (
            Link(Hold("step/s", step), Scope.STEP, "s", Window.RUN),
            Link(Hold("run/r", run), Scope.RUN, "r", Window.RUN),
        )
        self.call = Call(
            id="c1",
            protocol=PROTOCOLS["/v1/chat/completions"],
            principal=Principal("", "local", "p"),
            request=Request(body={}, model="large", output_tokens_max=cap, media_tokens=media),
            tags=Tags("w", "r", options=tuple(options)),
            run="r",
            model="large",
            chain=Chain(links, ladder=parse_ladder(ladder), wait_ms=wait_ms),
        )
        self.book = Book(DictStorage())
        self.prompt, self.shortest, self.usual, self.media = prompt, shortest, usual, media
        self.asked: list[Demand] = []
        self.aims: list[int] = []
        self.slept_ms = 0
        self.frees_at_ms = 10**9  # when a sibling lets go of what it holds
        self.climbing = Climbing(
            planner=self,  # type: ignore[arg-type]
            ask=self.ask,
            demand=self.demand,
            compress=self.compress,
            reroute=self.reroute,
            output_tokens_min=16,
            sleep=self.sleep,
        )

    async def up(self) -> Decision:
        return (await self.climbing.climb(self.call))[1]

    async def ask(self, call: Call, demand: Demand) -> Decision:
        self.asked.append(demand)
        return self.book.reserve("p", Reserve("c1", "me", call.chain.holds, demand, 60_000, b"{}"), 0)

    def demand(self, call: Call) -> Demand:
        prompt_price, output_price = PRICES[call.model]
        output = call.request.output_tokens_max or 4000
        prompt = self.prompt + self.media
        return Demand(prompt, output, output, prompt * prompt_price, output_price)

    async def compress(self, call: Call, aim: int) -> bool:
        self.aims.append(aim)
        before, self.prompt = self.prompt, min(self.prompt, max(self.shortest, aim))
        return self.prompt < before

    async def reroute(self, call: Call, refused: Refused) -> bool:
        if refused.unit != "nano_usd" or call.model not in NEXT:
            return False
        call.model = NEXT[call.model]
        return True

    def why_not(self, call: Call, rung: Rung) -> str:
        return ""

    def output_tokens_usual(self, call: Call) -> int:
        return self.usual

    async def sleep(self, seconds: float) -> None:
        self.slept_ms += round(seconds * 1000)
        if self.slept_ms == self.frees_at_ms:
            self.book.void("p", "sibling", 0)

    def sibling(self, account: str, tokens: int) -> None:
        held = self.book.reserve(
            "p", Reserve("sibling", "me", (Hold(account),), Demand(0, tokens, tokens), 60_000, b""), 0
        )
        assert isinstance(held, Granted)

    @property
    def rungs(self) -> list[tuple[str, str]]:
        return [(str(one["rung"]), one["result"]) for one in self.call.decisions if "rung" in one]


ALL = ("compress", "route", "clamp", "refuse")


async def test_a_call_that_fits_asks_once_and_notes_nothing() -> None:
    world = World(ALL, run=Limit(400, 35_000))
    assert isinstance(await world.up(), Granted)
    assert (len(world.asked), world.call.decisions) == (1, [])


async def test_a_rung_is_tried_again_against_what_is_short_next() -> None:
    """Tokens first, which no model changes; of the clamped answer it is the money, which a cheaper model saves."""
    world = World(ALL, step=Limit(tokens=2000), run=Limit(nano_usd=10_000), cap=None)
    granted = await world.up()
    assert isinstance(granted, Granted)
    assert (world.call.model, granted.output_tokens) == ("medium", (10_000 - 300 * 5) // 20)
    assert world.rungs == [
        ("whole", "does not fit"),
        ("compress", "changed nothing"),
        ("route", "changed nothing"),
        ("clamp", "does not fit"),
        ("compress", "changed nothing"),
        ("route", "fits"),
    ]


async def test_the_nearest_cheaper_model_is_not_the_last_one() -> None:
    world = World(ALL, run=Limit(nano_usd=500))
    assert isinstance(await world.up(), Granted)
    assert world.call.model == "small"
    assert [rung for rung, _ in world.rungs] == ["whole", "compress", "route", "clamp", "compress", "route"]


async def test_a_prompt_that_no_dear_model_could_take_is_shortened_for_a_cheaper_one() -> None:
    world = World(ALL, run=Limit(nano_usd=200), shortest=100)
    granted = await world.up()
    assert isinstance(granted, Granted)
    assert (world.call.model, world.prompt, granted.output_tokens) == ("small", 136, 16)


LIMITS = st.builds(Limit, st.none() | st.integers(0, 3000), st.none() | st.integers(0, 100_000))


@given(
    st.permutations(["compress", "route", "clamp", "wait"]),
    st.integers(0, 4),
    LIMITS,
    LIMITS,
    st.integers(1, 1500),
    st.integers(1, 1500),
    st.none() | st.integers(1, 3000),
    st.integers(0, 500),
)
def test_a_refused_call_would_fit_in_no_form_that_its_ladder_allows(
    rungs: list[str],
    length: int,
    run: Limit,
    step: Limit,
    prompt: int,
    shortest: int,
    cap: int | None,
    usual: int,
) -> None:
    ladder = rungs[:length]
    world = World([*ladder, "refuse"], run=run, step=step, prompt=prompt, shortest=shortest, cap=cap, usual=usual)
    if isinstance(asyncio.run(world.up()), Granted):
        return
    least = min(prompt, shortest) if "compress" in ladder else prompt
    answer = min(16, cap or 4000) if "clamp" in ladder else cap or 4000
    for model in PRICES if "route" in ladder else ["large"]:
        demand = least + answer, least * PRICES[model][0] + answer * PRICES[model][1]
        limits = [(limit.tokens, limit.nano_usd) for limit in (run, step)]
        assert any(
            most is not None and one > most for both in limits for one, most in zip(demand, both, strict=True)
        ), model


async def test_what_fits_nowhere_is_refused_once_every_rung_was_tried_against_every_shortage() -> None:
    world = World(ALL, step=Limit(tokens=310), run=Limit(nano_usd=200), cap=None, wait_ms=1000)
    refused = await world.up()
    assert isinstance(refused, Refused)
    assert len(world.asked) <= 6
    assert world.slept_ms == 0


async def test_nothing_is_tried_behind_refuse() -> None:
    world = World(("refuse", "clamp"), run=Limit(tokens=350))
    assert isinstance(await world.up(), Refused)
    assert world.rungs == [("whole", "does not fit")]


async def test_a_clamped_answer_stays_clamped_on_the_rungs_behind() -> None:
    world = World(("clamp", "compress", "refuse"), run=Limit(tokens=250), shortest=100, cap=1000)
    granted = await world.up()
    assert isinstance(granted, Granted)
    assert (world.aims, world.prompt, granted.output_tokens) == ([250 - 16], 234, 16)
    assert world.rungs == [("clamp", "does not fit"), ("compress", "fits")]


@pytest.mark.parametrize(
    ("ladder", "more", "aims"),
    [
        pytest.param(ALL, {"cap": 100}, [150], id="beside the answer that is asked for"),
        pytest.param(ALL, {"cap": 250}, [200], id="which leaves no room, so beside a usual one"),
        pytest.param(ALL, {"cap": None}, [200], id="no length is asked for"),
        pytest.param(ALL, {"cap": None, "usual": 900}, [234], id="a usual one leaves no room: beside the least"),
        pytest.param(ALL, {"cap": 20, "usual": 900}, [230], id="shorter than usual"),
        pytest.param(ALL, {"cap": None, "media": 60}, [140], id="images count for what they are held for"),
        pytest.param(("compress", "refuse"), {"cap": 100}, [150], id="nobody clamps"),
        pytest.param(("compress", "refuse"), {"cap": 250}, [], id="and the answer alone is too much"),
        pytest.param(ALL, {"cap": 250, "options": ["no-clamp"]}, [], id="the caller forbids to clamp it"),
    ],
)
async def test_a_prompt_is_shortened_to_what_lets_the_call_fit(
    ladder: Sequence[str], more: dict[str, Any], aims: list[int]
) -> None:
    world = World(ladder, run=Limit(tokens=250), shortest=10, **more)
    decision = await world.up()
    assert world.aims == aims
    assert isinstance(decision, Granted) is bool(aims)


async def test_a_shorter_prompt_is_no_help_where_requests_are_short() -> None:
    world = World(ALL, run=Limit(requests=0), shortest=10)
    assert isinstance(await world.up(), Refused)
    assert world.aims == []


async def test_waiting_is_for_wait_seconds_all_together() -> None:
    """The step's sibling lets go in time, the run's does not."""
    world = World(("wait", "refuse"), step=Limit(tokens=450), run=Limit(tokens=500), wait_ms=700)
    world.sibling("step/s", 100)
    held = Reserve("other", "me", (Hold("run/r"),), Demand(0, 200, 200), 60_000, b"")
    assert isinstance(world.book.reserve("p", held, 0), Granted)
    world.frees_at_ms = 300
    assert isinstance(await world.up(), Refused)
    assert world.slept_ms == 700
    assert world.call.actions == ["wait=700ms"]


async def test_after_waiting_the_rungs_before_are_tried_against_what_is_short_then() -> None:
    world = World(("compress", "wait", "refuse"), step=Limit(tokens=450), shortest=300, wait_ms=500)
    world.sibling("step/s", 100)
    world.frees_at_ms = 200
    assert isinstance(await world.up(), Granted)
    assert world.rungs == [("whole", "does not fit"), ("compress", "changed nothing"), ("wait", "fits")]


async def test_no_smaller_call_opens_a_gate() -> None:
    world = World(ALL, run=Limit(tokens=10))
    world.book.set_gate("p", "run/r", Gate.PAUSED, 0)
    assert isinstance(await world.up(), Refused)
    assert len(world.asked) == 1


async def test_what_nobody_may_take_is_told_once() -> None:
    world = World(("route", "clamp", "refuse"), run=Limit(tokens=100), options=["no-clamp"])
    assert isinstance(await world.up(), Refused)
    assert world.rungs == [("clamp", "not tried"), ("whole", "does not fit"), ("route", "changed nothing")]
    assert replace(world.asked[0]) == world.asked[-1]
