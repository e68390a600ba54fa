"""The options that all commands share, and the module of each command."""

from __future__ import annotations

from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from gateway import __version__

# The module and function of each command, by the panels of the help and in their order. A module is imported when its command is called,
# so that `serve` starts without the tables and the HTTP client of the others. A trailing `:` marks a command that takes a `Session`, a
# trailing `;` one whose session asks no gateway.
_PANELS: Final = {
    "Start": {
        "serve": "serve_command.serve",
        "demo": "demo_command.demo",
        "init": "maintenance_command.init;",
        "check": "maintenance_command.check;",
        "env": "env_command.env:",
    },
    "Watch": {
        "top": "top_command.top:",
        "runs": "runs_command.app",
        "usage": "usage_command.usage:",
        "explain": "explain_command.explain:",
        "audit": "usage_command.audit:",
    },
    "Steer": {
        "budgets": "budgets_command.app",
        "suggest": "workflows_command.suggest:",
        "workflows": "workflows_command.app",
        "classify": "workflows_command.classify:",
        "settings": "settings_command.app",
        "keys": "keys_command.app",
        "admin": "admin_command.admin",
    },
    "Keep up": {
        "doctor": "maintenance_command.doctor:",
        "migrate": "maintenance_command.migrate:",
        "reconcile": "maintenance_command.reconcile:",
        "schema": "maintenance_command.schema",
    },
}
_COMMANDS: Final = {name: (target, panel) for panel, targets in _PANELS.items() for name, target in targets.items()}


class Commands(TyperGroup):
    """The commands by name, each imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _config_first(args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        target = _COMMANDS.get(cmd_name)
        return None if target is None else _build_command(cmd_name, *target)


def _config_first(arguments: list[str]) -> list[str]:
    """Move `--config` to the front, so that it may also follow the command."""
    config: list[str] = []
    other_arguments: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            other_arguments += [argument, *remaining]
        elif argument == "--config":
            config += [argument, *islice(remaining, 1)]
        elif argument.startswith("--config="):
            config.append(argument)
        else:
            other_arguments.append(argument)
    return [*config, *other_arguments]


def _build_command(name: str, target: str, panel: str) -> Any:
    module, _, attribute = target.rstrip(":;").partition(".")
    command_object = getattr(import_module(f"gateway.cli.{module}"), attribute)
    # With a callback, Typer makes a group even of a single command, in which it has the same name and options as in ours.
    group = typer.Typer(add_completion=False, context_settings=_CONTEXT)
    group.callback()(lambda: None)
    if isinstance(command_object, typer.Typer):
        group.add_typer(command_object, name=name, rich_help_panel=panel)
    elif target[-1] in ":;":
        from gateway.cli.session import command

        command(group, name, panel=panel, uses_gateway=target[-1] == ":")(command_object)
    else:
        group.command(name, rich_help_panel=panel)(command_object)
    return cast(TyperGroup, get_command(group)).commands[name]


_CONTEXT: Final = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=Commands,
    name="farebox",
    help="An OpenAI-compatible gateway that gives every workflow, run and step of an agent a budget, and enforces it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"farebox {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar="FAREBOX_CONFIG",
            help="The configuration file. Default: config.yaml, if it exists.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = config
