"""`farebox env --client NAME`: prints what to paste to send a client's calls through the gateway, with tags."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.client_snippets import CLIENTS, SnippetValues, snippet
from gateway.cli.connection import CommandError, gateway_url, serving_operator
from gateway.cli.session import Session
from gateway.upstream.wildcards import STAR

_DEFAULT = SnippetValues()


def env(
    session: Session,
    client: Annotated[str | None, typer.Option("--client", help="The client. Default: list all of them.")] = None,
    api_key: Annotated[str, typer.Option("--api-key", help="The API key to insert.")] = _DEFAULT.key,
    workflow: Annotated[str, typer.Option(help="The value of x-workflow-id.")] = _DEFAULT.workflow,
    run: Annotated[str, typer.Option(help="The value of x-workflow-run-id.")] = _DEFAULT.run,
    step: Annotated[str, typer.Option(help="The value of x-workflow-step.")] = _DEFAULT.step,
    model: Annotated[str | None, typer.Option(help="A name from model_list. Default: the first one.")] = None,
) -> None:
    """Print the exact snippet for a client: address, key, and the headers that name workflow, run and step."""
    if client is None:
        listing = {"clients": [{"client": name, "title": client.title} for name, client in CLIENTS.items()]}
        session.print_rows(
            listing, lambda: (("client", ""), [(name, client.title) for name, client in CLIENTS.items()])
        )
        return
    client = _client_name(client)
    models = [entry for entry in session.config.model_list if STAR not in entry.model_name]
    operator = serving_operator(session.config)  # a running gateway may have been given another port with --port
    url = session.url or (operator and operator.address) or gateway_url(session.config) or _DEFAULT.url
    model_name = model or (models[0].model_name if models else _DEFAULT.model)
    text = snippet(client, SnippetValues(url.rstrip("/"), api_key, model_name, workflow, run, step))
    session.print_result({"client": client, "snippet": text}, text.rstrip("\n"))


def _client_name(client: str) -> str:
    """The full name of a client; an unambiguous prefix is enough. Raises `CommandError`."""
    matches = [client] if client in CLIENTS else [name for name in CLIENTS if name.startswith(client)]
    if len(matches) == 1:
        return matches[0]
    raise CommandError(f"There is no snippet for {client!r}; there are {', '.join(matches or CLIENTS)}.")
