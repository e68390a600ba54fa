"""Options that every command shares, and the commands themselves by file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway import __version__
from gateway.cli import admin_command, demo_command, serve_command

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


def main() -> None:
    app()
