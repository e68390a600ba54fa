"""A front desk that hands over to a booking agent: one run, a step for each agent, one budget for both.

The Agents SDK takes the headers from an agent's model settings, so each agent is a step of its own. For the third guest, too little of
the budget is left, and the desk says so.
"""

from __future__ import annotations

import asyncio
import os
import uuid

from agents import Agent, ModelSettings, Runner, set_default_openai_api, set_default_openai_client
from openai import APIStatusError, AsyncOpenAI

RUN = os.environ.get("RUN_ID", f"desk-{uuid.uuid4().hex[:8]}")
client = AsyncOpenAI(
    base_url=os.environ.get("FAREBOX_BASE_URL", "http://127.0.0.1:4000/v1"),
    api_key=os.environ.get("FAREBOX_KEY", "local"),
    default_headers={"x-workflow-id": "example-desk"},
)
set_default_openai_client(client, use_for_tracing=False)  # otherwise the SDK sends its traces to OpenAI, with this key
set_default_openai_api("chat_completions")


def step_settings(name: str, run: str, budget_tokens: int | None) -> ModelSettings:
    budget = {} if budget_tokens is None else {"x-workflow-budget-tokens": str(budget_tokens)}
    return ModelSettings(extra_headers={"x-workflow-run-id": run, "x-workflow-step": name, **budget})


def build_desk(run: str, budget_tokens: int | None = None) -> Agent:
    booking = Agent(
        name="Booking",
        handoff_description="Books rooms and tables.",
        instructions="Book what the guest wants, and confirm it in two sentences.",
        model="mock",
        model_settings=step_settings("booking", run, budget_tokens),
    )
    return Agent(
        name="Desk",
        instructions="Find out what the guest wants, and hand over to Booking.",
        model="desk",
        model_settings=step_settings("desk", run, budget_tokens),
        handoffs=[booking],
    )


async def serve_guest(run: str, request: str, budget_tokens: int | None = None) -> None:
    try:
        result = await Runner.run(build_desk(run, budget_tokens), request)
        print(f"{run}: {result.last_agent.name} says: {str(result.final_output)[:60]}…")
    except APIStatusError as error:
        if error.status_code != 402:
            raise
        metadata = error.body["metadata"]  # type: ignore[index]
        print(
            f"{run}: we have to stop here: {error.code} at step {metadata['step']}, {metadata['remaining']} {metadata['unit']} left"
        )


async def main() -> None:
    await serve_guest(f"{RUN}-1", "A table for two at eight.")
    await serve_guest(f"{RUN}-2", "A room with a view.", budget_tokens=230)  # Booking's answer is clamped
    await serve_guest(f"{RUN}-3", "The whole house for a week.", budget_tokens=180)  # too little is left for Booking
    await client.close()


asyncio.run(main())
