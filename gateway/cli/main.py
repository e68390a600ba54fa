"""Options that every command shares, and the commands themselves by file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from gateway import __version__

# Where each command is at home, in the order of the help. A module is imported when its command is called: `serve` starts
# without the tables, the HTTP client and the pages of the others. A `:` at the end marks a command that takes a `Session`.
_HOMES: Final = {
    "serve": "serve_command.serve",
    "admin": "admin_command.admin",
    "demo": "demo_command.demo",
    "init": "upkeep_command.init:",
    "check": "upkeep_command.check:",
    "schema": "upkeep_command.schema",
    "migrate": "upkeep_command.migrate:",
    "doctor": "upkeep_command.doctor:",
    "reconcile": "upkeep_command.reconcile:",
    "env": "env_command.env:",
    "usage": "usage_command.usage:",
    "audit": "usage_command.audit:",
    "explain": "explain_command.explain:",
    "top": "top_command.top:",
    "classify": "workflows_command.classify:",
    "suggest": "workflows_command.suggest:",
    "keys": "keys_command.app",
    "runs": "runs_command.app",
    "settings": "settings_command.app",
    "workflows": "workflows_command.app",
    "budgets": "budgets_command.app",
}


class Commands(TyperGroup):
    """The commands by name, each made of its module when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_HOMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        home = _HOMES.get(cmd_name)
        return None if home is None else _made(cmd_name, home)


def _made(name: str, home: str) -> Any:
    module, _, attribute = home.removesuffix(":").partition(".")
    found = getattr(import_module(f"gateway.cli.{module}"), attribute)
    # With a callback Typer makes a group even of one command, in which it has the name and the options that it has in ours.
    shelf = typer.Typer(add_completion=False, context_settings=_CONTEXT)
    shelf.callback()(lambda: None)
    if isinstance(found, typer.Typer):
        shelf.add_typer(found, name=name)
    elif home.endswith(":"):
        from gateway.cli.session import command

        command(shelf, name)(found)
    else:
        shelf.command(name)(found)
    return cast(TyperGroup, get_command(shelf)).commands[name]


_CONTEXT: Final = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=Commands,
    name="farebox",
    help="An OpenAI-compatible gateway that gives every workflow, run and step of an agent a budget, and keeps it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"farebox {__version__}")
        raise typer.Exit


@app.callback()
def shared(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar="FAREBOX_CONFIG",
            help="The configuration file. Default: config.yaml, if it is there.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = config
