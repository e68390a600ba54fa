"""Options that every command shares, and the commands themselves by file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway import __version__
from gateway.cli import (
    admin_command,
    budgets_command,
    demo_command,
    env_command,
    explain_command,
    keys_command,
    runs_command,
    serve_command,
    settings_command,
    top_command,
    upkeep_command,
    usage_command,
    workflows_command,
)
from gateway.cli.session import command

app = typer.Typer(
    name="farebox",
    help="An OpenAI-compatible gateway that gives every workflow, run and step of an agent a budget, and keeps it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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


app.command("serve")(serve_command.serve)
app.command("admin")(admin_command.admin)
app.command("demo")(demo_command.demo)
command(app, "init")(upkeep_command.init)
command(app, "check")(upkeep_command.check)
app.command("schema")(upkeep_command.schema)
command(app, "migrate")(upkeep_command.migrate)
command(app, "doctor")(upkeep_command.doctor)
command(app, "reconcile")(upkeep_command.reconcile)
command(app, "env")(env_command.env)
command(app, "usage")(usage_command.usage)
command(app, "audit")(usage_command.audit)
command(app, "explain")(explain_command.explain)
command(app, "top")(top_command.top)
command(app, "classify")(workflows_command.classify)
command(app, "suggest")(workflows_command.suggest)
for _name, _group in (
    ("keys", keys_command.app),
    ("runs", runs_command.app),
    ("settings", settings_command.app),
    ("workflows", workflows_command.app),
    ("budgets", budgets_command.app),
):
    app.add_typer(_group, name=_name)
