"""`farebox keys`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.output import echo_json, moment
from gateway.cli.session import Session, command

app = typer.Typer(help="API keys: made, listed, changed, rotated, revoked.", no_args_is_help=True)

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Its id, or its name where only one key has it.")]


@command(app, "create")
def create_key(
    session: Session,
    name: Annotated[str | None, typer.Argument(help="What it is for. Default: admin, viewer or app.")] = None,
    name_option: Annotated[str | None, typer.Option("--name", help="The same.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It administers Farebox, and calls no models.")] = False,
    role: Annotated[
        str | None, typer.Option(help="admin, or viewer: may look at everything and change nothing.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Whose budgets its calls spend. Default: default.")] = None,
    workflow: Annotated[str | None, typer.Option(help="For calls that name none.")] = None,
    agent: Annotated[str | None, typer.Option(help="For calls that name none.")] = None,
    step: Annotated[str | None, typer.Option(help="For tagged calls that name none.")] = None,
    user: Annotated[str | None, typer.Option(help="For tagged calls that name none.")] = None,
    priority: Annotated[
        str | None, typer.Option(help="low, normal, high or critical, for tagged calls that name none.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it may use, or openai/*. Default: all. Repeat it.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="What its calls may use in each window.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="What its calls may cost in each window.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="How many calls in each window.")] = None,
    window: Annotated[str | None, typer.Option(help="total, minute, hour, day or month. Default: total.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="How many calls at once.")] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="After so many days it is refused.")] = None,
) -> None:
    """Make a key and print it: it is shown here, and never again."""
    given = _limits(tokens, usd, requests, window, concurrency)
    body: dict[str, Any] = {
        "name": name or name_option or ("admin" if admin else role or "app"),
        "admin": admin,
        "role": role,
        "project": project,
        "workflow": workflow,
        "agent": agent,
        "step": step,
        "user": user,
        "priority": priority,
        "allowed_models": model or [],
        "expires_in_days": expires_in_days,
    }
    made = session.ask("POST", "/keys", body=body | ({"limits": given} if given else {}))
    _tell(
        session,
        made,
        f"Key {made['id']} ({made['name']}, {made['role'] or 'calls models'}). Keep it: it is shown once.",
    )


@command(app, "set")
def change_key(
    session: Session,
    key_name: KeyName,
    workflow: Annotated[str | None, typer.Option(help="For calls that name none; '' takes it away.")] = None,
    agent: Annotated[str | None, typer.Option(help="For calls that name none; '' takes it away.")] = None,
    step: Annotated[str | None, typer.Option(help="For tagged calls that name none; '' takes it away.")] = None,
    user: Annotated[str | None, typer.Option(help="For tagged calls that name none; '' takes it away.")] = None,
    priority: Annotated[str | None, typer.Option(help="For tagged calls that name none; '' takes it away.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it may use. Repeat it; '' means all.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="What its calls may use in each window.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="What its calls may cost in each window.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="How many calls in each window.")] = None,
    window: Annotated[str | None, typer.Option(help="total, minute, hour, day or month.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="How many calls at once.")] = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="First take all its limits away.")] = False,
    expires_in_days: Annotated[float | None, typer.Option(help="From now on; 0: never.")] = None,
) -> None:
    """Change what a key's calls are and may use. What is not named stays; what was used stays used."""
    tags = {"workflow": workflow, "agent": agent, "step": step, "user": user, "priority": priority}
    body: dict[str, Any] = {name: value or None for name, value in tags.items() if value is not None}
    if model is not None:
        body["allowed_models"] = [name for name in model if name]
    given = _limits(tokens, usd, requests, window, concurrency)
    if given or no_limits:
        kept = {} if no_limits else session.ask("GET", f"/keys/{key_name}")["limits"]
        body["limits"] = {**kept, **given} or None
    if expires_in_days is not None:
        body["expires_in_days"] = expires_in_days or None
    changed = session.ask("PATCH", f"/keys/{key_name}", body=body)
    session.say(changed, f"Key {changed['id']} ({changed['name']}): {limits_in_words(changed['limits'])}.")


def _limits(
    tokens: int | None, usd: float | None, requests: int | None, window: str | None, concurrency: int | None
) -> dict[str, Any]:
    limits = {"tokens": tokens, "usd": usd, "requests": requests, "window": window, "concurrency": concurrency}
    return {unit: value for unit, value in limits.items() if value is not None}


def limits_in_words(limits: dict[str, Any]) -> str:
    """`500 tokens, $0.5 a day, 2 at once`."""
    window = limits.get("window") or "total"
    lasting = "in total" if window == "total" else f"a {window}"
    units = (("tokens", "{:,} tokens"), ("usd", "${:g}"), ("requests", "{:,} calls"))
    used = [words.format(limits[unit]) for unit, words in units if unit in limits]
    said = [f"{', '.join(used)} {lasting}"] if used else []
    if "concurrency" in limits:
        said.append(f"{limits['concurrency']} at once")
    return ", ".join(said) or "no limits"


@command(app, "list")
def list_keys(
    session: Session, project: Annotated[str | None, typer.Option(help="Only of this project.")] = None
) -> None:
    """All keys, the newest first, without their secrets."""
    found = session.ask("GET", "/keys", {"limit": 1000, "project": project})
    headings = ("id", "name", "project", "key", "role", "limits", "state", "created", "by", "expires")
    session.show(
        found,
        lambda: (
            headings,
            [
                (
                    key["id"],
                    key["name"],
                    key["project"],
                    key["prefix"] + "…",
                    key["role"] or "calls models",
                    limits_in_words(key["limits"]),
                    key["state"],
                    moment(key["created_at"]),
                    key["created_by"],
                    moment(key["expires_at"]),
                )
                for key in found["keys"]
            ],
        ),
    )


@command(app, "revoke")
def revoke_key(session: Session, key_name: KeyName) -> None:
    """Refuse a key for good, in every process within two seconds."""
    found = session.ask("DELETE", f"/keys/{key_name}")
    session.say(found, f"Key {found['id']} ({found['name']}) is revoked.")


@command(app, "rotate")
def rotate_key(
    session: Session,
    key_name: KeyName,
    grace: Annotated[int, typer.Option(min=0, help="Seconds for which the old secret goes on working.")] = 0,
) -> None:
    """Give a key a new secret and print it. Its budgets and its history stay."""
    made = session.ask("POST", f"/keys/{key_name}/rotate", body={"grace_seconds": grace})
    _tell(session, made, f"Key {made['id']} ({made['name']}) has a new secret. The old one works for {grace} s.")


def _tell(session: Session, made: dict[str, Any], sentence: str) -> None:
    """The key alone on standard output, so that a script can take it; the rest beside it."""
    if session.as_json:
        echo_json(made)
        return
    typer.echo(made["key"])
    typer.echo(sentence, err=True)
    if made["warning"]:
        typer.echo(made["warning"], err=True)
