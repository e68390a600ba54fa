"""`farebox serve`."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from gateway.cli.configuration import load_configuration


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: server.host, 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on. Default: server.port, 4000. 0: a free one.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Number of processes. More than one needs Redis and Postgres.")
    ] = None,
    allow_anonymous: Annotated[
        bool,
        typer.Option(
            "--allow-anonymous",
            help="Listen on other addresses without any API key. Everyone who reaches them may spend.",
        ),
    ] = False,
) -> None:
    """Run the gateway until it is stopped."""
    config = load_configuration(context.obj, {"host": host, "port": port, "workers": workers})
    for sentence in config.ignored:
        typer.echo(f"farebox: {sentence}", err=True)
    gc.disable()  # a start produces no garbage worth collecting; enabled again once the server is ready
    from gateway.server.serving import serve as run

    raise typer.Exit(run(config, allow_anonymous=allow_anonymous))
