"""`farebox keys`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.output import cell_text, echo_json, timestamp
from gateway.cli.session import Session, command

app = typer.Typer(help="API keys: create, list, change, rotate and revoke them.", no_args_is_help=True)

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Its id, or its name if only one key has it.")]


@command(app, "create")
def create_key(
    session: Session,
    name: Annotated[str | None, typer.Argument(help="A name for it. Default: admin, viewer or app.")] = None,
    name_option: Annotated[str | None, typer.Option("--name", help="The same as NAME.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It administers Farebox, and cannot call models.")] = False,
    role: Annotated[
        str | None, typer.Option(help="admin, or viewer: may look at everything and change nothing.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="The project whose budgets it spends. Default: default.")] = None,
    workflow: Annotated[str | None, typer.Option(help="The workflow of calls that name none.")] = None,
    agent: Annotated[str | None, typer.Option(help="The agent of calls that name none.")] = None,
    step: Annotated[str | None, typer.Option(help="The step of tagged calls that name none.")] = None,
    user: Annotated[str | None, typer.Option(help="The user of tagged calls that name none.")] = None,
    priority: Annotated[
        str | None, typer.Option(help="low, normal, high or critical, for tagged calls that name none.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it may use, or openai/*; may be repeated. Default: all.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens per window.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="US dollars per window.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="Calls per window.")] = None,
    window: Annotated[str | None, typer.Option(help="total, minute, hour, day or month. Default: total.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Concurrent calls.")] = None,
    expires_in_days: Annotated[float | None, typer.Option(help="Days until it expires.")] = None,
) -> None:
    """Create a key and print it. It is shown only once."""
    limits = _limits(tokens, usd, requests, window, concurrency)
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
    new_key = session.request("POST", "/keys", body=body | ({"limits": limits} if limits else {}))
    _print_new_key(
        session,
        new_key,
        f"Key {new_key['id']} ({new_key['name']}, {new_key['role'] or 'calls models'}). Keep it: it is shown once.",
    )


@command(app, "set")
def change_key(
    session: Session,
    key_name: KeyName,
    workflow: Annotated[str | None, typer.Option(help="The workflow of calls that name none; '' removes it.")] = None,
    agent: Annotated[str | None, typer.Option(help="The agent of calls that name none; '' removes it.")] = None,
    step: Annotated[str | None, typer.Option(help="The step of tagged calls that name none; '' removes it.")] = None,
    user: Annotated[str | None, typer.Option(help="The user of tagged calls that name none; '' removes it.")] = None,
    priority: Annotated[str | None, typer.Option(help="Of tagged calls that name none; '' removes it.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it may use; may be repeated. '' means all.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="Tokens per window.")] = None,
    usd: Annotated[float | None, typer.Option(min=0, help="US dollars per window.")] = None,
    requests: Annotated[int | None, typer.Option(min=0, help="Calls per window.")] = None,
    window: Annotated[str | None, typer.Option(help="total, minute, hour, day or month.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Concurrent calls.")] = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Remove all its present limits first.")] = False,
    expires_in_days: Annotated[float | None, typer.Option(help="Days from now until it expires; 0: never.")] = None,
) -> None:
    """Change the defaults, models, limits or expiry of a key. What is not given stays, and what was used stays used."""
    tags = {"workflow": workflow, "agent": agent, "step": step, "user": user, "priority": priority}
    body: dict[str, Any] = {name: value or None for name, value in tags.items() if value is not None}
    if model is not None:
        body["allowed_models"] = [name for name in model if name]
    new_limits = _limits(tokens, usd, requests, window, concurrency)
    if new_limits or no_limits:
        current_limits = {} if no_limits else session.request("GET", f"/keys/{key_name}")["limits"]
        body["limits"] = {**current_limits, **new_limits} or None
    if expires_in_days is not None:
        body["expires_in_days"] = expires_in_days or None
    changed = session.request("PATCH", f"/keys/{key_name}", body=body)
    session.print_result(changed, f"Key {changed['id']} ({changed['name']}): {limits_text(changed['limits'])}.")
    if changed["warning"] and not session.as_json:
        typer.echo(changed["warning"], err=True)


def _limits(
    tokens: int | None, usd: float | None, requests: int | None, window: str | None, concurrency: int | None
) -> dict[str, Any]:
    limits = {"tokens": tokens, "usd": usd, "requests": requests, "window": window, "concurrency": concurrency}
    return {unit: value for unit, value in limits.items() if value is not None}


def limits_text(limits: dict[str, Any]) -> str:
    """`500 tokens, $0.5 a day, 2 at once`."""
    window = limits.get("window") or "total"
    period = "in total" if window == "total" else f"a {window}"
    units = (("tokens", "{} tokens"), ("usd", "${}"), ("requests", "{} calls"))
    texts = [words.format(cell_text(limits[unit])) for unit, words in units if unit in limits]
    parts = [f"{', '.join(texts)} {period}"] if texts else []
    if "concurrency" in limits:
        parts.append(f"{limits['concurrency']} at once")
    return ", ".join(parts) or "no limits"


@command(app, "list")
def list_keys(
    session: Session, project: Annotated[str | None, typer.Option(help="Only of this project.")] = None
) -> None:
    """List all keys, the newest first, without their secrets."""
    response = session.request_all("/keys", "keys", {"project": project})
    headings = ("id", "name", "project", "key", "role", "limits", "state", "created", "by", "expires")
    session.print_rows(
        response,
        lambda: (
            headings,
            [
                (
                    key["id"],
                    key["name"],
                    key["project"],
                    key["prefix"] + "…",
                    key["role"] or "calls models",
                    limits_text(key["limits"]),
                    key["state"],
                    timestamp(key["created_at"]),
                    key["created_by"],
                    timestamp(key["expires_at"]),
                )
                for key in response["keys"]
            ],
        ),
    )


@command(app, "revoke")
def revoke_key(session: Session, key_name: KeyName) -> None:
    """Revoke a key for good. Every process refuses it within two seconds."""
    response = session.request("DELETE", f"/keys/{key_name}")
    session.print_result(response, f"Key {response['id']} ({response['name']}) is revoked.")


@command(app, "rotate")
def rotate_key(
    session: Session,
    key_name: KeyName,
    grace: Annotated[int, typer.Option(min=0, help="Seconds for which the old secret keeps working.")] = 0,
) -> None:
    """Give a key a new secret and print it. Its budgets and history are kept."""
    new_key = session.request("POST", f"/keys/{key_name}/rotate", body={"grace_seconds": grace})
    old = f"The old one works for another {grace:,} s." if grace else "The old one no longer works."
    _print_new_key(session, new_key, f"Key {new_key['id']} ({new_key['name']}) has a new secret. {old}")


def _print_new_key(session: Session, new_key: dict[str, Any], sentence: str) -> None:
    """Print the key alone on standard output, for scripts, and the rest on standard error."""
    if session.as_json:
        echo_json(new_key)
        return
    typer.echo(new_key["key"])
    typer.echo(sentence, err=True)
    if new_key["warning"]:
        typer.echo(new_key["warning"], err=True)
