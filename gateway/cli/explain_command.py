"""`farebox explain`: says what an error code, log event or check means, or what would happen to a call and why."""

from __future__ import annotations

import difflib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from gateway.cli.connection import CommandError
from gateway.cli.output import echo_json, show_table
from gateway.cli.session import Session
from gateway.error_guide import GUIDES
from gateway.error_guide import explain as explain_guide


class Protocol(StrEnum):
    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"


def explain(
    session: Session,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="An error code, a log event or a check of `farebox doctor`; or a JSON file with the body of a call (- for"
            " standard input).",
        ),
    ],
    workflow: Annotated[str | None, typer.Option(help="The call's x-workflow-id.")] = None,
    run: Annotated[str | None, typer.Option(help="The call's x-workflow-run-id.")] = None,
    step: Annotated[str | None, typer.Option(help="The call's x-workflow-step.")] = None,
    agent: Annotated[str | None, typer.Option(help="The call's x-workflow-agent.")] = None,
    intent: Annotated[str | None, typer.Option(help="The call's x-workflow-intent.")] = None,
    priority: Annotated[str | None, typer.Option(help="The call's x-workflow-priority.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="The call's x-workflow-budget-tokens.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="The call's x-workflow-budget-usd.")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="The API key of the call, by id or name.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="The endpoint that the call would go to.")] = Protocol.CHAT,
    project: Annotated[str, typer.Option(help="The project.")] = "default",
) -> None:
    """Explain an error code, log event or check, and what to do about it; or what would happen to a call, without sending it."""
    # A folder may have the name of a check, such as `ledger`.
    if what != "-" and (os.path.isdir(what) or not os.path.exists(what)):
        _explain_name(session, what)
        return
    given: dict[str, Any] = {
        "workflow": workflow,
        "run": run,
        "step": step,
        "agent": agent,
        "intent": intent,
        "priority": priority,
    }
    given |= {"budget_tokens": budget_tokens, "budget_usd": budget_usd}
    tags = {name: value for name, value in given.items() if value is not None}
    body = _read_call(Path(what)) | ({"tags": tags} if tags else {})
    query = {"protocol": protocol.value, "key": api_key, "project": project}
    explanation = session.request("POST", "/explain", query, body)
    if session.as_json:
        echo_json(explanation)
    else:
        _print_explanation(explanation)


def _explain_name(session: Session, name: str) -> None:
    guide, text = GUIDES.get(name), explain_guide(name)
    if guide is None or text is None:
        near = difflib.get_close_matches(name, GUIDES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ", nor such a file."
        raise CommandError(f"There is no code, event or check {name!r}{hint}")
    session.print_result({"name": name, "told": guide.label, "means": guide.meaning, "do": guide.remedy}, text)


def _read_call(file: Path) -> dict[str, Any]:
    try:
        body = orjson.loads(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}.") from error
    except orjson.JSONDecodeError as error:
        raise CommandError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise CommandError(f"{file} must hold one JSON object: the body of a call.")
    return body


def _print_explanation(explanation: dict[str, Any]) -> None:
    error = explanation["error"]
    if error is None:
        hold = explanation["hold"]
        held_note = f", {hold['tokens']} tokens held" if hold else ""
        typer.echo(
            f"It would go to {explanation['model']}{held_note}: {', '.join(explanation['actions']) or 'as it is'}."
        )
    else:
        typer.echo(f"It would be refused with {error['status']} {error['code']}: {error['message']}")
    intent, share = explanation["intent"], explanation["allocation"]
    if intent is not None:
        typer.echo(f"Intent {intent['intent']} ({intent['confidence']:.2f}, {intent['source']}): {intent['reasoning']}")
    if share is not None:
        typer.echo(f"Allocation {share['tokens']} tokens, at most {share['hard_limit_tokens']}: {share['reason']}")
    if explanation["prompt_tokens"] is not None:
        typer.echo(f"Prompt {explanation['prompt_tokens']} tokens, {explanation['prompt_tokens_sent']} sent.")
    rows = [
        (
            budget["scope"],
            budget["scope_id"],
            budget["tokens"]["limit"],
            budget["tokens"]["remaining"],
            budget["cost_usd"]["remaining"],
        )
        for budget in explanation["budgets"]
    ]
    if rows:
        show_table(("scope", "of", "tokens", "left", "usd left"), rows)
    for decision in explanation["decisions"]:
        typer.echo(
            "- " + ", ".join(f"{name} {value}" for name, value in decision.items() if value not in (None, "", []))
        )
