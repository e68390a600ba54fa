"""What every command has: the options `--json`, `--key` and `--url`, a way to the control API, and one way to fail."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from gateway.cli.configuration import configured
from gateway.cli.connection import Connection, Failed, connected
from gateway.cli.output import echo_json, show_table
from gateway.config import Config

T = TypeVar("T")
EXIT_FAILED: Final = 1

_JSON: Final = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
_KEY: Final = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="FAREBOX_ADMIN_KEY",
        show_envvar=True,
        help="An admin key. The machine of an embedded store needs none.",
    ),
]
_URL: Final = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="FAREBOX_URL",
        show_envvar=True,
        help="Another gateway than that of the configuration: https://farebox.example.",
    ),
]


@dataclass
class Session:
    """One run of a command."""

    config_path: Path | None
    as_json: bool
    key: str | None
    url: str | None

    @cached_property
    def config(self) -> Config:
        """Ends the process with exit code 2 when it is wrong."""
        return configured(self.config_path)

    def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do something over one connection."""

        async def connect_and_work() -> T:
            async with connected(self.config, key=self.key, url=self.url) as connection:
                return await work(connection)

        return asyncio.run(connect_and_work())

    def ask(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """One request, and its answer's JSON."""

        async def asked(connection: Connection) -> Any:
            return (await connection.ask(method, path, query, body)).checked().value

        return self.run(asked)

    def text(self, path: str, query: Mapping[str, Any]) -> str:
        """One GET whose answer is no JSON."""

        async def asked(connection: Connection) -> str:
            return (await connection.ask("GET", path, query)).checked().body.decode()

        return self.run(asked)

    def show(self, value: Any, rows: Callable[[], tuple[tuple[str, ...], list[tuple[Any, ...]]]]) -> None:
        """The value as JSON, or the table that `rows` makes of it: its headings, and its cells."""
        if self.as_json:
            echo_json(value)
        else:
            show_table(*rows())

    def say(self, value: Any, sentence: str) -> None:
        """The value as JSON, or one line for people."""
        if self.as_json:
            echo_json(value)
        else:
            typer.echo(sentence)


def command(
    app: typer.Typer, name: str, *, panel: str | None = None, asks: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function whose first parameter is its `Session`. `asks`: whether it may ask a gateway."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name, rich_help_panel=panel)(_with_options(function, asks))
        return function

    return register


def _with_options(function: Callable[..., None], asks: bool) -> Callable[..., None]:
    def run(context: typer.Context, **given: Any) -> None:
        session = Session(context.obj, given.pop("as_json"), given.pop("key", None), given.pop("url", None))
        try:
            function(session, **given)
        except Failed as failed:
            typer.echo(f"farebox: {failed}", err=True)
            raise typer.Exit(EXIT_FAILED) from None

    hints = get_type_hints(function, include_extras=True)
    own = [one.replace(annotation=hints[one.name]) for one in list(inspect.signature(function).parameters.values())[1:]]
    options = (("as_json", _JSON), ("key", _KEY), ("url", _URL))[: None if asks else 1]
    added = [_parameter(name, annotation) for name, annotation in options]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    signature = inspect.Signature([context, *own, *added])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    default = False if name == "as_json" else None
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
