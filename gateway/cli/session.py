"""What commands share: the options `--json`, `--key` and `--url`, access to the control API, and error reporting."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from gateway.cli.configuration import load_configuration
from gateway.cli.connection import CommandError, Connection, connect
from gateway.cli.output import echo_json, show_table
from gateway.config.schema import Config

ResultT = TypeVar("ResultT")
EXIT_FAILED: Final = 1
_PAGE_ITEMS: Final = 1_000

_JSON: Final = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_KEY: Final = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="FAREBOX_ADMIN_KEY",
        show_envvar=True,
        help="An admin key. Not needed on the machine of an embedded store.",
    ),
]
_URL: Final = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="FAREBOX_URL",
        show_envvar=True,
        help="A gateway other than the configured one, such as https://farebox.example.",
    ),
]


@dataclass
class Session:
    """One invocation of a command."""

    config_path: Path | None
    as_json: bool
    key: str | None
    url: str | None

    @cached_property
    def config(self) -> Config:
        """Exits with code 2 if the configuration is invalid."""
        return load_configuration(self.config_path)

    def run(self, work: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        """Run `work` with a connection to the control API."""

        async def connect_and_work() -> ResultT:
            async with connect(self.config, key=self.key, url=self.url) as connection:
                return await work(connection)

        return asyncio.run(connect_and_work())

    def request(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """Send one request and return the JSON of its answer. Raises `CommandError`."""

        async def send(connection: Connection) -> Any:
            return (await connection.request(method, path, query, body)).raise_for_error().value

        return self.run(send)

    def request_all(self, path: str, field: str, query: Mapping[str, Any] | None = None) -> Any:
        """The answers of all pages of a list as one, with the items in `field`. Raises `CommandError`."""

        async def read(connection: Connection) -> Any:
            items: list[Any] = []
            cursor = ""
            while True:
                page_query = {**(query or {}), "limit": _PAGE_ITEMS, "cursor": cursor or None}
                page = (await connection.request("GET", path, page_query)).raise_for_error().value
                items += page[field]
                cursor = page["next"]
                if not cursor:
                    return page | {field: items}

        return self.run(read)

    def request_text(self, path: str, query: Mapping[str, Any]) -> str:
        """Send one GET request and return the text of its answer. Raises `CommandError`."""

        async def send(connection: Connection) -> str:
            return (await connection.request("GET", path, query)).raise_for_error().body.decode()

        return self.run(send)

    def print_rows(
        self,
        value: Any,
        rows: Callable[[], tuple[tuple[str, ...], list[tuple[Any, ...]]]],
        *,
        others: str = "--limit shows more",
    ) -> None:
        """Print the value as JSON, or as a table of the headings and rows that `rows` returns. Say on stderr if the list is incomplete,
        and what shows the `others`."""
        if self.as_json:
            echo_json(value)
            return
        headings, lines = rows()
        show_table(headings, lines)
        if value.get("next"):
            typer.echo(f"There are more than these; {others}.", err=True)

    def print_result(self, value: Any, sentence: str) -> None:
        """Print the value as JSON, or a sentence."""
        if self.as_json:
            echo_json(value)
        else:
            typer.echo(sentence)


def command(
    app: typer.Typer, name: str, *, panel: str | None = None, uses_gateway: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command; its first parameter is the `Session`. `uses_gateway`: whether it may ask a gateway."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name, rich_help_panel=panel)(_with_options(function, uses_gateway))
        return function

    return register


def _with_options(function: Callable[..., None], uses_gateway: bool) -> Callable[..., None]:
    def run(context: typer.Context, **options: Any) -> None:
        session = Session(context.obj, options.pop("as_json"), options.pop("key", None), options.pop("url", None))
        try:
            if session.url and not session.url.startswith(("http://", "https://")):
                raise CommandError(f"--url {session.url} must begin with http:// or https://.")
            function(session, **options)
        except CommandError as error:
            typer.echo(f"farebox: {error}", err=True)
            raise typer.Exit(EXIT_FAILED) from None

    hints = get_type_hints(function, include_extras=True)
    own_parameters = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    options = (("as_json", _JSON), ("key", _KEY), ("url", _URL))[: None if uses_gateway else 1]
    added = [_parameter(name, annotation) for name, annotation in options]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    signature = inspect.Signature([context, *own_parameters, *added])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    default = False if name == "as_json" else None
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
