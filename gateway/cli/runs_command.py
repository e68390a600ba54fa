"""`farebox runs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.output import cell_text, echo_json, pluralized, show_table, timestamp
from gateway.cli.session import Session, command

app = typer.Typer(help="Runs: see what they use, and steer them.", no_args_is_help=True)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
Project = Annotated[str, typer.Option(help="The run's project.")]


@command(app, "list")
def list_runs(
    session: Session,
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    state: Annotated[str | None, typer.Option(help="active, paused, exhausted, completed or cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to list.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="The `next` of the previous page (--json).")] = None,
    project: Project = "default",
) -> None:
    """List runs, the latest first."""
    query = {"workflow": workflow, "agent": agent, "state": state, "limit": limit, "cursor": cursor, "project": project}
    response = session.request("GET", "/runs", query)
    session.print_rows(response, lambda: (RUN_HEADINGS, [run_row(run) for run in response["runs"]]))


@command(app, "show")
def show_run(session: Session, run: RunName, project: Project = "default") -> None:
    """Show one run with its steps."""
    _print_run(session, session.request("GET", f"/runs/{run}", {"project": project}))


@command(app, "calls")
def list_calls(
    session: Session,
    run: RunName,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to list.")] = 50,
    project: Project = "default",
) -> None:
    """List the calls of a run, the latest first, with how each ended."""
    response = session.request("GET", f"/runs/{run}/calls", {"limit": limit, "project": project})
    headings = ("at", "step", "model", "status", "tokens", "usd", "ms", "actions", "code")
    session.print_rows(
        response,
        lambda: (
            headings,
            [
                (
                    timestamp(call["at"]),
                    call["step"],
                    call["model"],
                    call["status"],
                    call["total_tokens"],
                    call["cost_usd"],
                    call["duration_ms"],
                    call["actions"],
                    call["code"],
                )
                for call in response["calls"]
            ],
        ),
    )


@command(app, "pause")
def pause_run(session: Session, run: RunName, project: Project = "default") -> None:
    """Refuse the calls of a run until it is resumed."""
    _change_state(session, run, "pause", project)


@command(app, "resume")
def resume_run(session: Session, run: RunName, project: Project = "default") -> None:
    """Let a paused run continue."""
    _change_state(session, run, "resume", project)


@command(app, "cancel")
def cancel_run(session: Session, run: RunName, project: Project = "default") -> None:
    """Cancel a run: its next call is refused."""
    _change_state(session, run, "cancel", project)


@command(app, "complete")
def complete_run(session: Session, run: RunName, project: Project = "default") -> None:
    """Complete a run: its next call is refused, and its metrics are final."""
    _change_state(session, run, "complete", project)


@command(app, "budget")
def set_budget(
    session: Session,
    run: RunName,
    tokens: Annotated[int | None, typer.Option(min=0, help="The new limit in tokens, not an addition.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="The new limit in US dollars.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="The new limit in calls.")] = None,
    project: Project = "default",
) -> None:
    """Show what is left of a run's budget, or give it limits of its own."""
    fields = {
        name: value for name, value in (("tokens", tokens), ("usd", usd), ("requests", requests)) if value is not None
    }
    if fields:
        _print_run(session, session.request("POST", f"/runs/{run}/budget", {"project": project}, fields))
        return
    response = session.request("GET", f"/runs/{run}", {"project": project})
    status = {name: response[name] for name in ("run", "workflow", "state", "tokens", "cost_usd", "requests")}
    session.print_rows(
        status, lambda: (_UNITS, [(name, *response[name].values()) for name in ("tokens", "cost_usd", "requests")])
    )


@command(app, "reset")
def reset_run(
    session: Session,
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    project: Project = "default",
) -> None:
    """Let a run start over with nothing spent. All other totals keep what it has used."""
    if not yes and not session.as_json:
        typer.confirm(f"Reset what run {run} has used?", abort=True)
    response = session.request("POST", f"/runs/{run}/reset", {"project": project})
    summary = response["summary"]
    session.print_result(
        response,
        f"Run {run} had used {pluralized(summary['tokens']['settled'], 'token')} in {pluralized(summary['requests']['settled'], 'call')}, "
        "and begins again.",
    )


RUN_HEADINGS = ("run", "workflow", "agent", "state", "tokens", "held", "of", "left", "usd", "calls", "refused", "last")
_UNITS = ("", "limit", "settled", "reserved", "remaining", "overrun", "saved")


def run_row(run: dict[str, Any]) -> tuple[Any, ...]:
    tokens = run["tokens"]
    return (
        run["run"],
        run["workflow"],
        run["agent"],
        run["state"],
        tokens["settled"],
        tokens["reserved"],
        tokens["limit"],
        tokens["remaining"],
        run["cost_usd"]["settled"],
        run["calls"],
        run["refused"],
        timestamp(run["last_at"]),
    )


def _change_state(session: Session, run: str, action: str, project: str) -> None:
    _print_run(session, session.request("POST", f"/runs/{run}/{action}", {"project": project}))


def _state_reason(run: Mapping[str, Any]) -> str:
    return ": its agent repeats itself" if run["state_reason"] == "loop_detected" else ""


def _print_run(session: Session, run: dict[str, Any]) -> None:
    if session.as_json:
        echo_json(run)
        return
    metrics = run["metrics"]
    typer.echo(f"Run {run['run']} of {run['workflow'] or 'no workflow'} is {run['state']}{_state_reason(run)}.")
    show_table(_UNITS, [(name, *run[name].values()) for name in ("tokens", "cost_usd", "requests")])
    headings = ("step", "intent", "tier", "status", "tokens", "held", "of", "left", "usd", "calls", "refused")
    show_table(headings, [_step_row(step) for step in run["steps"]])
    typer.echo(
        f"{pluralized(metrics['calls'], 'call')}, {cell_text(metrics['refused'])} refused, {pluralized(metrics['errors'], 'error')}; "
        f"{cell_text(metrics['input_tokens'])} tokens in, {cell_text(metrics['output_tokens'])} out, "
        f"{cell_text(metrics['saved_tokens'])} saved; {metrics['duration_ms'] / 1000:,.1f} s."
    )


def _step_row(step: dict[str, Any]) -> tuple[Any, ...]:
    tokens = step["tokens"]
    return (
        step["step"],
        step["intent"],
        step["tier"],
        step["status"],
        tokens["settled"],
        tokens["reserved"],
        tokens["limit"],
        tokens["remaining"],
        step["cost_usd"]["settled"],
        step["calls"],
        step["refused"],
    )
