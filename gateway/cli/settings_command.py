"""`farebox settings`."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.connection import CommandError
from gateway.cli.output import setting_text, timestamp
from gateway.cli.session import Session, command
from policies.settings import PREFIX

app = typer.Typer(help="The 40 settings: show, change and revert them.", no_args_is_help=True)

Setting = Annotated[str, typer.Argument(metavar="KEY", help="With or without `orchestration_`.")]


@command(app, "list")
def list_settings(
    session: Session,
    category: Annotated[str | None, typer.Option(help="Only this category.")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only those that differ from their default.")] = False,
) -> None:
    """List all settings with their ranges."""
    settings = session.request("GET", "/settings")["settings"]
    categories = dict.fromkeys(setting["category"] for setting in settings)
    if category is not None and category not in categories:
        raise CommandError(f"There is no category {category!r}; there are {', '.join(categories)}.")
    rows = [
        setting
        for setting in settings
        if category in (None, setting["category"]) and not (changed and setting["value"] == setting["default"])
    ]
    headings = ("key", "value", "default", "range", "from", "changed by")
    session.print_rows(
        {"settings": rows},
        lambda: (
            headings,
            [
                (
                    setting["key"],
                    setting_text(setting["value"]),
                    setting_text(setting["default"]),
                    setting["range"],
                    setting["origin"],
                    setting["updated_by"],
                )
                for setting in rows
            ],
        ),
    )


@command(app, "get")
def get_setting(session: Session, setting: Setting) -> None:
    """Print the value of one setting."""
    response = session.request("GET", f"/settings/{_full_key(setting)}")
    session.print_result(response, setting_text(response["value"]))


@command(app, "set")
def set_setting(
    session: Session,
    setting: Setting,
    value: Annotated[str, typer.Argument(help="The new value.")],
) -> None:
    """Change one setting. It takes effect in every process within two seconds."""
    response = session.request("PUT", f"/settings/{_full_key(setting)}", body={"value": value})
    session.print_result(response, f"{response['key']} is {setting_text(response['value'])}.")


@command(app, "history")
def list_changes(
    session: Session,
    setting: Annotated[str | None, typer.Argument(metavar="KEY", help="Default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to list.")] = 50,
) -> None:
    """List changes: who changed what, when, from which value to which."""
    path = "/settings/history" if setting is None else f"/settings/{_full_key(setting)}/history"
    response = session.request("GET", path, {"limit": limit})
    session.print_rows(
        response,
        lambda: (
            ("change", "at", "key", "old", "new", "by"),
            [
                (
                    str(change["id"]),
                    timestamp(change["changed_at"]),
                    change["key"],
                    setting_text(change["old"]),
                    setting_text(change["new"]),
                    change["changed_by"],
                )
                for change in response["changes"]
            ],
        ),
    )


@command(app, "revert")
def revert_change(session: Session, change: Annotated[int, typer.Argument(help="Its number in the history.")]) -> None:
    """Set a setting back to what it was before a change."""
    response = session.request("POST", f"/settings/history/{change}/revert")
    session.print_result(response, f"{response['key']} is {setting_text(response['value'])} again.")


def _full_key(key: str) -> str:
    return key if key.startswith(PREFIX) else PREFIX + key
