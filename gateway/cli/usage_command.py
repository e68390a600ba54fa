"""`farebox usage` and `farebox audit`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.output import cell_text, timestamp
from gateway.cli.session import Session
from gateway.store.usage_report import GroupBy

Since = Annotated[str | None, typer.Option("--from", help="A date or time in UTC, such as 2026-11-22; inclusive.")]
Until = Annotated[str | None, typer.Option("--to", help="A date or time in UTC; exclusive.")]
_FIGURE_COLUMNS = (
    "calls",
    "refused",
    "errors",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cost_usd",
    "saved_tokens",
)


def usage(
    session: Session,
    by: Annotated[GroupBy, typer.Option("--by", "--group-by", help="What to group by.")] = GroupBy.WORKFLOW,
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow.")] = None,
    run: Annotated[str | None, typer.Option(help="Only of this run.")] = None,
    step: Annotated[str | None, typer.Option(help="Only of this step.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="Only of this API key, by id or name.")] = None,
    intent: Annotated[str | None, typer.Option(help="Only of this intent.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    since: Since = None,
    until: Until = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="How many rows. Default: 100; with --csv all.")
    ] = None,
    project: Annotated[str, typer.Option(help="The project.")] = "default",
) -> None:
    """Show what was used, grouped and summed."""
    query = {
        "group_by": by.value,
        "workflow": workflow,
        "run": run,
        "step": step,
        "agent": agent,
        "key": api_key,
        "intent": intent,
        "model": model,
        "from": since,
        "to": until,
        "limit": limit,
        "project": project,
    }
    if as_csv:
        typer.echo(session.request_text("/usage", query | {"format": "csv"}), nl=False)
        return
    response = session.request("GET", "/usage", query)
    # A key is shown by its name, which people know; usage without a key has neither.
    rows = [
        (row.get("key_name") or row[by.value], *(row[name] for name in _FIGURE_COLUMNS)) for row in response["rows"]
    ]
    total = ("total", *(response["total"][name] for name in _FIGURE_COLUMNS))
    session.print_rows(response, lambda: ((by.value, *_FIGURE_COLUMNS), [*rows, total] if rows else []))


def audit(
    session: Session,
    action: Annotated[str | None, typer.Option(help="Such as key.created, or a prefix such as `run.`.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this actor did.")] = None,
    run: Annotated[str | None, typer.Option(help="Only about this run.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to list.")] = 50,
    project: Annotated[str | None, typer.Option(help="Only of this project.")] = None,
) -> None:
    """Show who changed what, and when."""
    query = {
        "action": action,
        "actor": actor,
        "run": run,
        "from": since,
        "to": until,
        "limit": limit,
        "project": project,
    }
    response = session.request("GET", "/audit", query)
    session.print_rows(
        response,
        lambda: (
            ("at", "who", "did", "to", "detail"),
            [
                (
                    timestamp(event["at"]),
                    event["actor"],
                    event["action"],
                    event["target"],
                    ", ".join(
                        _detail_text(name, value) for name, value in event["detail"].items() if value is not None
                    ),
                )
                for event in response["events"]
            ],
        ),
    )


def _detail_text(name: str, value: Any) -> str:
    """One detail of an event, money in USD as everywhere else."""
    return f"usd={cell_text(value / 1e9)}" if name == "nano_usd" else f"{name}={cell_text(value)}"
