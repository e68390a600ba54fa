"""Climbing the ladder on a real book of accounts: which rungs are tried, how often, and with which compression target."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.call import Call, Principal
from gateway.pipeline.pressure_ladder import PressureLadder
from gateway.tags import Tags
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.amounts import UNLIMITED, Limit
from policies.book import Book, DictStorage
from policies.budgets import Chain, Link, Scope, Window
from policies.pressure import Rung, parse_ladder
from policies.reservation import Decision, Demand, Gate, Granted, Hold, Refused, Reserve

PRICES = {"large": (50, 200), "medium": (5, 20), "small": (1, 4)}  # nano-USD per input and output token
NEXT = {"large": "medium", "medium": "small"}


class Scenario:
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
            tags=Tags("w", "r", options=frozenset(options)),
            run="r",
            model="large",
            chain=Chain(links, ladder=parse_ladder(ladder), wait_ms=wait_ms),
        )
        self.book = Book(DictStorage())
        self.prompt, self.shortest, self.usual, self.media = prompt, shortest, usual, media
        self.asked: list[Demand] = []
        self.aims: list[int] = []
        self.slept_ms = 0
        self.frees_at_ms = 10**9  # when the sibling hold is released
        self.ladder = PressureLadder(
            planner=self,  # type: ignore[arg-type]
            fitting=self,  # type: ignore[arg-type]
            sleep=self.sleep,
        )

    async def climb(self) -> Decision:
        return (await self.ladder.climb(self.call))[1]

    async def try_reserve(self, call: Call, demand: Demand) -> Decision:
        self.asked.append(demand)
        return self.book.reserve("p", Reserve("c1", "me", call.chain.holds, demand, 60_000, b"{}"), 0)

    def demand(self, call: Call) -> Demand:
        prompt_price, output_price = PRICES[call.model]
        output = call.request.output_tokens_max or 4000
        prompt = self.prompt + self.media
        return Demand(prompt, output, output, prompt * prompt_price, output_price)

    def output_tokens_min(self, call: Call) -> int:
        return max(16, call.request.output_tokens_min_useful)

    async def compress(self, call: Call, aim: int, *, under_pressure: bool) -> bool:
        self.aims.append(aim)
        before, self.prompt = self.prompt, min(self.prompt, max(self.shortest, aim))
        return self.prompt < before

    async def reroute(self, call: Call, refused: Refused) -> bool:
        if refused.unit != "nano_usd" or call.model not in NEXT:
            return False
        call.model = NEXT[call.model]
        return True

    def skip_reason(self, call: Call, rung: Rung) -> str:
        return ""

    def output_tokens_expected(self, call: Call) -> int:
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
        return [(str(decision["rung"]), decision["result"]) for decision in self.call.decisions if "rung" in decision]


ALL = ("compress", "route", "clamp", "refuse")


async def test_call_that_fits_reserves_once_and_records_no_decision() -> None:
    scenario = Scenario(ALL, run=Limit(400, 35_000))
    assert isinstance(await scenario.climb(), Granted)
    assert (len(scenario.asked), scenario.call.decisions) == (1, [])


async def test_rung_is_tried_again_when_another_unit_is_short() -> None:
    """Tokens are short first, which no model changes; once the output is clamped, money is short, which a cheaper model saves."""
    scenario = Scenario(ALL, step=Limit(tokens=2000), run=Limit(nano_usd=10_000), cap=None)
    granted = await scenario.climb()
    assert isinstance(granted, Granted)
    assert (scenario.call.model, granted.output_tokens) == ("medium", (10_000 - 300 * 5) // 20)
    assert scenario.rungs == [
        ("whole", "does not fit"),
        ("compress", "changed nothing"),
        ("route", "changed nothing"),
        ("clamp", "does not fit"),
        ("compress", "changed nothing"),
        ("route", "fits"),
    ]


async def test_route_is_tried_again_until_a_model_fits() -> None:
    scenario = Scenario(ALL, run=Limit(nano_usd=500))
    assert isinstance(await scenario.climb(), Granted)
    assert scenario.call.model == "small"
    assert [rung for rung, _ in scenario.rungs] == ["whole", "compress", "route", "clamp", "compress", "route"]


async def test_prompt_is_compressed_again_for_the_cheaper_model() -> None:
    scenario = Scenario(ALL, run=Limit(nano_usd=200), shortest=100)
    granted = await scenario.climb()
    assert isinstance(granted, Granted)
    assert (scenario.call.model, scenario.prompt, granted.output_tokens) == ("small", 136, 16)


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
def test_refused_call_fits_in_no_form_that_its_ladder_allows(
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
    scenario = Scenario([*ladder, "refuse"], run=run, step=step, prompt=prompt, shortest=shortest, cap=cap, usual=usual)
    if isinstance(asyncio.run(scenario.climb()), Granted):
        return
    least = min(prompt, shortest) if "compress" in ladder else prompt
    answer = min(16, cap or 4000) if "clamp" in ladder else cap or 4000
    for model in PRICES if "route" in ladder else ["large"]:
        demand = least + answer, least * PRICES[model][0] + answer * PRICES[model][1]
        limits = [(limit.tokens, limit.nano_usd) for limit in (run, step)]
        assert any(
            most is not None and needed > most for both in limits for needed, most in zip(demand, both, strict=True)
        ), model


async def test_call_that_cannot_fit_is_refused_in_at_most_6_reserves_without_waiting() -> None:
    scenario = Scenario(ALL, step=Limit(tokens=310), run=Limit(nano_usd=200), cap=None, wait_ms=1000)
    refused = await scenario.climb()
    assert isinstance(refused, Refused)
    assert len(scenario.asked) <= 6
    assert scenario.slept_ms == 0


async def test_rungs_after_refuse_are_not_tried() -> None:
    scenario = Scenario(("refuse", "clamp"), run=Limit(tokens=350))
    assert isinstance(await scenario.climb(), Refused)
    assert scenario.rungs == [("whole", "does not fit")]


async def test_clamped_output_stays_clamped_on_later_rungs() -> None:
    scenario = Scenario(("clamp", "compress", "refuse"), run=Limit(tokens=250), shortest=100, cap=1000)
    granted = await scenario.climb()
    assert isinstance(granted, Granted)
    assert (scenario.aims, scenario.prompt, granted.output_tokens) == ([250 - 16], 234, 16)
    assert scenario.rungs == [("clamp", "does not fit"), ("compress", "fits")]


@pytest.mark.parametrize(
    ("ladder", "more", "aims"),
    [
        pytest.param(ALL, {"cap": 100}, [150], id="requested output is reserved beside the prompt"),
        pytest.param(ALL, {"cap": 250}, [200], id="requested output leaves no room: the usual output"),
        pytest.param(ALL, {"cap": None}, [200], id="no output length requested: the usual output"),
        pytest.param(ALL, {"cap": None, "usual": 900}, [234], id="usual output leaves no room: the minimum output"),
        pytest.param(ALL, {"cap": 20, "usual": 900}, [230], id="requested output below the usual"),
        pytest.param(ALL, {"cap": None, "media": 60}, [140], id="media tokens are reserved beside the prompt"),
        pytest.param(("compress", "refuse"), {"cap": 100}, [150], id="ladder without clamp"),
        pytest.param(("compress", "refuse"), {"cap": 250}, [], id="ladder without clamp and output too large"),
        pytest.param(ALL, {"cap": 250, "options": ["no-clamp"]}, [], id="clamping forbidden by the caller"),
    ],
)
async def test_compression_aims_at_a_prompt_that_lets_the_call_fit(
    ladder: Sequence[str], more: dict[str, Any], aims: list[int]
) -> None:
    scenario = Scenario(ladder, run=Limit(tokens=250), shortest=10, **more)
    decision = await scenario.climb()
    assert scenario.aims == aims
    assert isinstance(decision, Granted) is bool(aims)


async def test_compression_is_not_tried_when_requests_are_short() -> None:
    scenario = Scenario(ALL, run=Limit(requests=0), shortest=10)
    assert isinstance(await scenario.climb(), Refused)
    assert scenario.aims == []


async def test_waits_add_up_to_at_most_wait_seconds() -> None:
    """The sibling hold on the step is released in time, the one on the run is not."""
    scenario = Scenario(("wait", "refuse"), step=Limit(tokens=450), run=Limit(tokens=500), wait_ms=700)
    scenario.sibling("step/s", 100)
    held = Reserve("other", "me", (Hold("run/r"),), Demand(0, 200, 200), 60_000, b"")
    assert isinstance(scenario.book.reserve("p", held, 0), Granted)
    scenario.frees_at_ms = 300
    assert isinstance(await scenario.climb(), Refused)
    assert scenario.slept_ms == 700
    assert scenario.call.actions == ["wait=700ms"]


async def test_call_fits_after_waiting_for_a_sibling_hold() -> None:
    scenario = Scenario(("compress", "wait", "refuse"), step=Limit(tokens=450), shortest=300, wait_ms=500)
    scenario.sibling("step/s", 100)
    scenario.frees_at_ms = 200
    assert isinstance(await scenario.climb(), Granted)
    assert scenario.rungs == [("whole", "does not fit"), ("compress", "changed nothing"), ("wait", "fits")]


async def test_closed_gate_refuses_without_trying_any_rung() -> None:
    scenario = Scenario(ALL, run=Limit(tokens=10))
    scenario.book.set_gate("p", "run/r", Gate.PAUSED, 0)
    assert isinstance(await scenario.climb(), Refused)
    assert len(scenario.asked) == 1


async def test_forbidden_rung_is_recorded_once_as_not_tried() -> None:
    scenario = Scenario(("route", "clamp", "refuse"), run=Limit(tokens=100), options=["no-clamp"])
    assert isinstance(await scenario.climb(), Refused)
    assert scenario.rungs == [("clamp", "not tried"), ("whole", "does not fit"), ("route", "changed nothing")]
    assert replace(scenario.asked[0]) == scenario.asked[-1]
