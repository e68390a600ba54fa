"""`farebox check`, `init`, `migrate`, `schema`, `doctor` and `reconcile`."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.configuration import DEFAULT_FILE, EXIT_CONFIG, read_config
from gateway.cli.connection import CommandError, Connection
from gateway.cli.output import echo_json, pluralized, setting_text, show_table
from gateway.cli.session import EXIT_FAILED, Session
from gateway.config.faults import ConfigError
from gateway.config.reference import SCHEMA_ID, example_file, schema_text
from gateway.config.schema import Config
from gateway.ledger.port import LedgerError, LedgerUnavailable
from gateway.store.database import Database, StoreError, StoreInUse
from gateway.store.tables import SCHEMA_REVISION


def check(session: Session) -> None:
    """Check the configuration, and report every fault with file, line and column (exit code 2).

    If the ledger is a Redis, also check that it is fit to keep budgets (exit code 1 if it is not).
    """
    try:
        config = read_config(session.config_path)
        faults = _price_faults(config)
    except ConfigError as error:
        config, faults = None, error.faults
    redis_check = RedisCheck() if config is None or faults else asyncio.run(_check_redis(config))
    if session.as_json:
        echo_json(
            {
                "faults": faults,
                "ignored": [] if config is None else list(config.ignored),
                "summary": {} if config is None or faults else _summary(config),
                "ledger": asdict(redis_check),
            }
        )
    for fault in () if session.as_json else (*faults, *(() if config is None else config.ignored)):
        typer.echo(fault, err=True)
    if config is None or faults:
        raise typer.Exit(EXIT_CONFIG)
    if not session.as_json:
        for name, value in ({"file": _file_text(session.config_path)} | _summary(config)).items():
            typer.echo(f"{name:<9} {value}")
        for sentence in filter(None, (redis_check.fault, redis_check.unreached, *redis_check.warnings)):
            typer.echo(f"ledger    {sentence}", err=True)
        typer.echo(
            "The configuration is fine." if not redis_check.fault else "The configuration is fine, the ledger is not."
        )
    if redis_check.fault:
        raise typer.Exit(EXIT_FAILED)


@dataclass(frozen=True)
class RedisCheck:
    """Whether a Redis is fit for the ledger. `fault`: why no gateway would start with it. `unreached`: why it could not be checked."""

    fault: str = ""
    unreached: str = ""
    warnings: tuple[str, ...] = ()


async def _check_redis(config: Config) -> RedisCheck:
    if not config.storage.ledger.startswith("redis"):
        return RedisCheck()
    from gateway.ledger.redis import RedisLedger

    storage = config.storage
    try:
        ledger = RedisLedger(
            storage.ledger, deadline_ms=2_000, allow_eviction=storage.allow_eviction, durability=storage.durability
        )
        await ledger.open()
    except LedgerUnavailable as error:
        return RedisCheck(unreached=str(error))
    except LedgerError as error:
        return RedisCheck(fault=str(error))
    await ledger.close()
    return RedisCheck(warnings=ledger.warnings)


def init(
    session: Session,
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("config.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a configuration file with every key, its default and an explanation."""
    if path.exists() and not force:
        raise CommandError(f"{path} already exists; --force replaces it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_with_local_schema_reference(example_file().read_text(encoding="utf-8")), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{error.filename or path} cannot be written: {error.strerror}.") from error
    session.print_result({"path": str(path)}, f"Wrote {path}. Next: farebox -c {path} serve")


def _with_local_schema_reference(example: str) -> str:
    """Adapt the example's reference to the schema: elsewhere the schema does not exist until `farebox schema` writes it."""
    remaining_lines = example.partition("\n")[2]
    hint = f"# Editors check this file by what `farebox schema > {SCHEMA_ID}` writes, because of the next line."
    return f"{hint}\n# yaml-language-server: $schema={SCHEMA_ID}\n{remaining_lines}"


def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    typer.echo(schema_text(), nl=False)


def migrate(
    session: Session,
    check_only: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with code 1 if there is something to do.")
    ] = False,
) -> None:
    """Upgrade the store's tables to this version, in one transaction."""
    try:
        revision_before, revision_after = asyncio.run(_migrate(session.config, check_only))
    except StoreInUse:
        revision_before = revision_after = _schema_of_running_gateway(session)
    session.print_result(
        {
            "before": revision_before,
            "after": revision_after,
            "wanted": SCHEMA_REVISION,
            "is_current": revision_after == SCHEMA_REVISION,
        },
        f"The store's schema is {revision_after or 'not there yet'}; this version has {SCHEMA_REVISION}."
        if check_only
        else f"The store's schema is {revision_after}, and was {revision_before or 'not there'}.",
    )
    if revision_after != SCHEMA_REVISION:
        raise typer.Exit(EXIT_FAILED)


def doctor(session: Session) -> None:
    """Check everything that the gateway depends on (exit code 1 if something is not fit)."""
    try:
        report = session.request("GET", "/doctor")
    except CommandError as error:
        report = {"findings": [{"check": "gateway", "status": "fail", "detail": str(error)}], "is_fit": False}
        report["findings"] += asyncio.run(_check_parts(session.config))
    rows = [(finding["check"], finding["status"], finding["detail"]) for finding in report["findings"]]
    session.print_rows(report, lambda: (("check", "status", "found"), rows))
    first_problem = next((check for check, status, _ in rows if status != "ok"), None)
    if first_problem is not None and not session.as_json:
        typer.echo(
            f"What a check means and what to do: farebox explain {shlex.quote(first_problem)}, or docs/errors.md."
        )
    if not report["is_fit"]:
        raise typer.Exit(EXIT_FAILED)


def reconcile(
    session: Session,
    repair: Annotated[bool, typer.Option("--repair", help="Record each difference as an entry of its own.")] = False,
    since: Annotated[str | None, typer.Option(help="Only runs seen since this date. Default: 30 days ago.")] = None,
    project: Annotated[str, typer.Option(help="The project.")] = "default",
) -> None:
    """Compare what the ledger has booked with what the store has recorded (exit code 1 if they differ)."""
    body: dict[str, Any] = {"repair": repair} | ({"since": since} if since else {})

    async def compare(connection: Connection) -> Any:
        return (await connection.request("POST", "/reconcile", {"project": project}, body)).raise_for_error().value

    report = session.run(compare)
    if session.as_json:
        echo_json(report)
    else:
        rows = [
            (drift["account"], *(drift[side][unit] for unit in _UNITS for side in _SIDES)) for drift in report["drifts"]
        ]
        if rows:
            show_table(("account", *(f"{unit} {side}" for unit in _UNITS for side in _SIDES)), rows)
        typer.echo(
            f"{pluralized(report['checked'], 'account')} compared: {len(report['drifts'])} differ, {len(report['moving'])} were moving, "
            f"{report['repaired']} entries written."
        )
    if report["drifts"] and not report["repaired"]:
        raise typer.Exit(EXIT_FAILED)


# Before the host, or in the query, where Postgres takes it as well.
_PASSWORD = re.compile(r"(?<=://)([^:/?#]*:).*(?=@)|([?&]password=)[^&]*", re.IGNORECASE)
_UNITS = ("tokens", "usd")
_SIDES = ("booked", "stored")


def _price_faults(config: Config) -> list[str]:
    from gateway.pricebook import PriceBook
    from gateway.upstream.model_list import deployments_of
    from gateway.upstream.price_map import PriceMap, installed_price_map

    prices = PriceMap(installed_price_map())
    try:
        return PriceBook(prices).check(deployments_of(config.model_list, prices))
    except ValueError as error:
        return [f"model_list: {error}"]


def _summary(config: Config) -> dict[str, str]:
    names = [model.model_name for model in config.model_list]
    by_scope = [f"{budget.scope} {budget.match}" for budget in config.budgets]
    return {
        "models": ", ".join(dict.fromkeys(names)) or "none",
        "budgets": ", ".join(by_scope) or "none",
        "settings": ", ".join(f"{key}={setting_text(value)}" for key, value in config.settings.items()) or "defaults",
        "ledger": _without_password(config.storage.ledger),
        "store": _without_password(config.storage.store),
        "server": f"{config.server.host}:{config.server.port}, {config.server.workers} process{'' if config.server.workers == 1 else 'es'}",
    }


def _file_text(path: Path | None) -> str:
    if path is None and not DEFAULT_FILE.exists():
        return f"none: there is no {DEFAULT_FILE} here, so the defaults are meant (`farebox init` writes one)"
    return str(path or DEFAULT_FILE)


def _without_password(url: str) -> str:
    return _PASSWORD.sub(lambda match: (match[1] or match[2]) + "…", url)


def _schema_of_running_gateway(session: Session) -> str:
    """The schema of a store that a gateway holds: at its start, a gateway upgrades an embedded store to its own version."""
    findings = session.request("GET", "/doctor")["findings"]
    schema = next((finding for finding in findings if finding["check"] == "store schema"), None)
    if schema is None or schema["status"] != "ok":
        raise CommandError("The store belongs to a running gateway, which does not say what its schema is.")
    return SCHEMA_REVISION


async def _migrate(config: Config, check_only: bool) -> tuple[str | None, str | None]:
    store = Database(config.storage.store)
    try:
        await store.open()
        revision_before = await store.schema_revision()
        if check_only:
            return revision_before, revision_before
        return revision_before, await store.migrate(time.time_ns() // 1_000_000)
    except StoreInUse:
        raise
    except StoreError as error:
        raise CommandError(str(error)) from error
    finally:
        await store.close()


async def _check_parts(config: Config) -> list[dict[str, str]]:
    """Check ledger and store separately, because the gateway as a whole did not start."""
    from gateway.app import Application
    from gateway.doctor import Finding, ledger_findings, store_findings

    parts = Application(config, is_server=False).parts
    findings: list[Finding] = []
    try:
        await parts.store.open()
        findings += await store_findings(parts.store, time.time_ns() // 1_000_000)
    except StoreError as error:
        findings.append(Finding("store", "fail", str(error)))
    try:
        # Opened while the store is open, from which an empty Redis is rebuilt before it is used.
        await parts.ledger.open()
        findings += await ledger_findings(parts)
    except LedgerError as error:
        findings.append(Finding("ledger", "fail", str(error)))
    finally:
        await parts.ledger.close()
        await parts.store.close()
        parts.tokenizer.close()
    return [{"check": finding.check, "status": finding.status, "detail": finding.detail} for finding in findings]
