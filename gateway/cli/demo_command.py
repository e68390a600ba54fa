"""`farebox demo`: runs a five-step workflow within its budget against the built-in model. Needs no key and no network."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.output import console as console_of_output
from gateway.config.loading import parse_config
from gateway.config.schema import Config

WORKFLOW: Final = "morning-briefing"
RUN: Final = "demo"
_RUN_TOKENS: Final = 1_500
_CONFIG: Final = """
model_list:
  - model_name: writer
    litellm_params: {model: openai/writer, mock_response: "%s", mock_delay_ms: 150}
    model_info: {input_cost_per_token: 1.0e-6, output_cost_per_token: 4.0e-6, max_output_tokens: 1024}
storage: {ledger: "sqlite:///%s/ledger.db", store: "sqlite:///%s/store.db"}
server: {log_level: error}
budgets:
  - {scope: run, match: morning-briefing, tokens: 1500, usd: 0.01}
  - {scope: step, match: morning-briefing/collect, tokens: 400}
  - {scope: step, match: morning-briefing/summarize, tokens: 300}
  - {scope: step, match: morning-briefing/draft, tokens: 120}
  - {scope: step, match: morning-briefing/check, tokens: 200}
  - {scope: step, match: morning-briefing/send, tokens: 20}
"""
_ANSWER: Final = (
    "Revenue grew by four percent over the quarter, mostly in the north, while support tickets fell for the third week in "
    "a row. Two suppliers announced longer delivery times. The team asks for a decision on the new office by Friday, and "
    "the next release stays planned for the end of the month. Nothing else needs attention this morning."
)


@dataclass(slots=True)
class _StepSummary:
    """What the response headers say about one step."""

    limit: int | None = None
    remaining: int | None = None
    calls: int = 0
    actions: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


def demo() -> None:
    """Run a five-step workflow through the OpenAI SDK and show what happens to its budget."""
    console = console_of_output()
    console.print(
        f"A run of [bold]{WORKFLOW}[/bold] may use {_RUN_TOKENS} tokens. Five steps, parallel calls, one stream, one clamp, one refusal.\n"
    )
    with tempfile.TemporaryDirectory(prefix="farebox-demo-") as folder, _running_gateway(Path(folder)) as url:
        steps, left = asyncio.run(_run_workflow(url, console))
    console.print(_table(steps))
    for step in steps.values():
        for refusal in step.refusals:
            console.print(f"[red]Refused:[/red] {refusal}")
    console.print(f"\nThe run has {left} of {_RUN_TOKENS} tokens left. Nothing that was refused was sent, or paid.")


@contextmanager
def _running_gateway(folder: Path) -> Iterator[str]:
    """The real gateway on a free port, in a thread of this process."""
    import uvicorn

    from gateway.app import Application
    from gateway.observability.logs import set_up_logging

    config: Config = parse_config(_CONFIG % (_ANSWER, folder, folder), "the demo's configuration", {})
    set_up_logging("console", "error")
    server = uvicorn.Server(
        uvicorn.Config(Application(config), port=0, lifespan="on", access_log=False, log_config=None, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise typer.Exit(1)
        threading.Event().wait(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


async def _run_workflow(url: str, console: Console) -> tuple[dict[str, _StepSummary], str]:
    from openai import AsyncOpenAI

    steps: dict[str, _StepSummary] = defaultdict(_StepSummary)
    async with AsyncOpenAI(base_url=url, api_key="not-needed") as client:
        console.print("  collect    three calls at once")
        await asyncio.gather(
            *(_call(client, steps, "collect", f"Extract the figures of report {number}.", 90) for number in (1, 2, 3))
        )
        console.print("  summarize  one call")
        await _call(client, steps, "summarize", "Summarize the figures in a paragraph.", 150)
        console.print("  draft      one stream, without a cap of its own")
        await _streamed_call(client, steps, "draft", "Write the briefing from the summary.")
        console.print("  check      one call")
        await _call(client, steps, "check", "Does the briefing name every figure? Answer yes or no.", 20)
        console.print("  send       one call that its budget does not cover\n")
        await _call(client, steps, "send", "Send the briefing to everyone on the list, with a friendly greeting.", 200)
        answer = await client.chat.completions.with_raw_response.create(
            model="writer",
            messages=[{"role": "user", "content": "Done?"}],
            max_tokens=16,
            extra_headers=_headers("done"),
        )
    return steps, answer.headers["x-budget-run-remaining"]


def _headers(step: str) -> dict[str, str]:
    return {"x-workflow-id": WORKFLOW, "x-workflow-run-id": RUN, "x-workflow-step": step}


async def _call(client: Any, steps: dict[str, _StepSummary], name: str, prompt: str, tokens_max: int) -> None:
    from openai import APIStatusError

    step = steps[name]
    try:
        answer = await client.chat.completions.with_raw_response.create(
            model="writer",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=tokens_max,
            extra_headers=_headers(name),
        )
    except APIStatusError as error:
        error_body: dict[str, Any] = error.body if isinstance(error.body, dict) else {}
        metadata = error_body.get("metadata", {})
        step.limit, step.remaining = metadata.get("limit"), metadata.get("remaining")
        step.refusals.append(f"{error.status_code} {error.code}: {error_body.get('message', error)}")
        return
    _record_headers(step, answer.headers)


async def _streamed_call(client: Any, steps: dict[str, _StepSummary], name: str, prompt: str) -> None:
    step = steps[name]
    async with client.chat.completions.with_streaming_response.create(
        model="writer", messages=[{"role": "user", "content": prompt}], stream=True, extra_headers=_headers(name)
    ) as answer:
        _record_headers(step, answer.headers)
        async for line in answer.iter_lines():
            if line.startswith(": budget"):
                step.actions.append("stream")
                step.remaining = int(line.partition('"step_remaining":')[2].partition(",")[0])


def _record_headers(step: _StepSummary, headers: Any) -> None:
    step.calls += 1
    step.limit = int(headers["x-budget-step-limit"])
    remaining = int(headers["x-budget-step-remaining"])
    step.remaining = remaining if step.remaining is None else min(step.remaining, remaining)
    step.actions += headers.get("x-budget-actions", "").split(", ") if headers.get("x-budget-actions") else []


def _table(steps: dict[str, _StepSummary]) -> Table:
    table = Table(title=f"Run '{RUN}' of workflow '{WORKFLOW}'", title_justify="left")
    table.add_column("step")
    for column in ("calls", "limit", "used", "remaining"):
        table.add_column(column, justify="right")
    table.add_column("what was done")
    for name, step in steps.items():
        used_tokens = "" if step.limit is None or step.remaining is None else str(step.limit - step.remaining)
        actions = ", ".join(dict.fromkeys(step.actions)) or ("refused" if step.refusals else "")
        table.add_row(name, str(step.calls), _cell(step.limit), used_tokens, _cell(step.remaining), actions)
    return table


def _cell(value: int | None) -> str:
    return "" if value is None else str(value)
