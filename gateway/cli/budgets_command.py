"""`farebox budgets`."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from gateway.cli.connection import CommandError
from gateway.cli.output import timestamp
from gateway.cli.session import Session, command

app = typer.Typer(
    help="Budgets of the configuration file and of the store, and what is left of them.", no_args_is_help=True
)

BudgetId = Annotated[str, typer.Argument(metavar="ID")]
Project = Annotated[str, typer.Option(help="The project.")]
# Budgets with an account for each run or step, of which there may be any number: what lists those accounts.
_PER_RUN: Final = {"run": "`farebox runs list`", "step": "`farebox runs show`"}


@command(app, "list")
def list_budgets(session: Session, project: Project = "default") -> None:
    """List all budgets, each with its fullest account."""
    response = session.request_all("/budgets", "budgets", {"project": project})
    headings = ("id", "on", "match", "window", "tokens", "usd", "requests", "mode", "accounts", "fullest", "used")
    session.print_rows(response, lambda: (headings, [_budget_row(budget) for budget in response["budgets"]]))


@command(app, "show")
def show_budget(session: Session, budget_id: BudgetId, project: Project = "default") -> None:
    """Show one budget and its current accounts, the fullest first."""
    response = session.request("GET", f"/budgets/{budget_id}", {"project": project})
    if not response["accounts"] and not session.as_json:
        typer.echo(_without_accounts(response))
        return
    headings = ("name", "tokens", "held", "of", "left", "usd", "of usd", "requests", "of requests", "resets")
    session.print_rows(
        response,
        lambda: (
            headings,
            [
                (
                    account["scope_id"],
                    account["tokens_settled"],
                    account["tokens_reserved"],
                    account["tokens_limit"],
                    account["tokens_remaining"],
                    account["usd_settled"],
                    account["usd_limit"],
                    account["requests_settled"],
                    account["requests_limit"],
                    timestamp(account["resets_at"]),
                )
                for account in response["accounts"]
            ],
        ),
    )


@command(app, "create")
def create_budget(
    session: Session,
    scope: Annotated[str, typer.Argument(help="run, step, workflow, agent, key or project.")],
    match: Annotated[str, typer.Argument(help="A name or glob: workflow, workflow/step, agent, key, project.")] = "*",
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens per window.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="US dollars per window.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="Calls per window.")] = None,
    window: Annotated[str | None, typer.Option(help="run, total, minute, hour, day or month.")] = None,
    mode: Annotated[str, typer.Option(help="enforce, or observe: count, but refuse nothing.")] = "enforce",
    only_project: Annotated[str | None, typer.Option("--only-project", help="Only for calls of this project.")] = None,
) -> None:
    """Create a budget. It applies from the next call on."""
    if tokens is None and usd is None and requests is None:
        raise CommandError("A budget limits something: give at least one of --tokens, --usd and --requests.")
    fields: dict[str, Any] = {
        "scope": scope,
        "match": match,
        "tokens": tokens,
        "usd": usd,
        "requests": requests,
        "window": window,
        "mode": mode,
        "project": only_project,
    }
    body = {name: value for name, value in fields.items() if value is not None}
    response = session.request("POST", "/budgets", body=body)
    session.print_result(response, f"Budget {response['id']} applies from now on.")


@command(app, "delete")
def delete_budget(session: Session, budget_id: BudgetId) -> None:
    """Delete a budget. Budgets of the configuration file are changed there."""
    response = session.request("DELETE", f"/budgets/{budget_id}")
    session.print_result(response, f"Budget {budget_id} is deleted.")


def _without_accounts(budget: dict[str, Any]) -> str:
    scope, match = budget["scope"], budget["match"]
    if scope in _PER_RUN:
        return f"Each {scope} that {match} matches has an account of its own; {_PER_RUN[scope]} shows them."
    return f"No {scope} that {match} matches has made a call yet, so there is no account."


def _budget_row(budget: dict[str, Any]) -> tuple[Any, ...]:
    fullest = budget["accounts"][0] if budget["accounts"] else None
    used_share = None if fullest is None or fullest["used"] is None else f"{fullest['used']:.0%}"
    return (
        budget["id"],
        budget["scope"],
        budget["match"],
        budget["window"],
        budget["tokens"],
        budget["usd"],
        budget["requests"],
        budget["mode"],
        None if budget["scope"] in _PER_RUN else len(budget["accounts"]),
        None if fullest is None else fullest["scope_id"],
        used_share,
    )
