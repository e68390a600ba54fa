"""The application: joins the parts to a pipeline, starts and stops them, and routes requests.

With `gateway.parts` the composition root: everything is made once in these two modules, and passed down.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from gateway.answers.engine import answer_storage_for
from gateway.answers.port import AnswerLimits
from gateway.bookkeeping.heartbeat import Heartbeat
from gateway.bookkeeping.recorder import BatchRecorder
from gateway.config.conversion import retention_of, timeouts_of
from gateway.config.faults import ConfigError
from gateway.config.schema import Config
from gateway.endpoints.access import ADMIN_KEY_VARIABLE, Access, OperatorFile, check_binding
from gateway.endpoints.error_answers import not_found_handler
from gateway.endpoints.health import health_routes
from gateway.endpoints.lazy import LazyApplication, PrefixRoute
from gateway.endpoints.router import RequestRouter
from gateway.errors import ModelNotFound
from gateway.ledger.clock import wall_clock_ms
from gateway.ledger.outage import OutageLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.loopback import is_loopback, local_address
from gateway.observability.alerts import Alerts
from gateway.observability.gauges import Gauges
from gateway.parts import Parts, make_parts
from gateway.pipeline.answer_cache import AnswerCache
from gateway.pipeline.assembly import admission_for, fitting_for
from gateway.pipeline.call import Call
from gateway.pipeline.ending import Ending
from gateway.pipeline.forwarding import Forwarding
from gateway.pipeline.handler import CallHandler
from gateway.pipeline.hold import HoldKeeper
from gateway.pipeline.idempotency import Idempotency
from gateway.pipeline.intake import Intake, OpenTo
from gateway.pipeline.loop_breaker import LoopBreaker
from gateway.pipeline.relaying import Relaying
from gateway.pipeline.reserving import Reserving
from gateway.pipeline.run_rate import NewRunLimit
from gateway.pipeline.settlement import Settler
from gateway.runs.in_progress import RunsInProgress
from gateway.store.database import StoreUnavailable
from gateway.store.housekeeping import run_housekeeping_daily
from gateway.tasks import cancel
from gateway.tokenizer import DEFAULT_ENCODING
from gateway.upstream.port import Deployment
from gateway.upstream.wildcards import STAR
from gateway.wire.protocol import Request
from gateway.wire.protocols import PROTOCOLS
from policies.reservation import OnLost
from policies.tokens import counting_for

_log = structlog.get_logger(__name__)


class Application:
    """An ASGI application with its own start and stop, one per process. The command line uses it too, without serving."""

    def __init__(
        self,
        config: Config,
        *,
        allow_anonymous: bool = False,
        environment: Mapping[str, str] | None = None,
        is_server: bool = True,
    ) -> None:
        self.config = config
        # The process's own environment, not a copy, because LiteLLM reads its switches from there when it is imported.
        environ: MutableMapping[str, str] = os.environ if environment is None else dict(environment)
        environ.update(config.environment_variables)
        self.parts = make_parts(config, environ, allow_anonymous)
        self._gauges = Gauges(self.parts)
        self._heartbeat = Heartbeat(
            self.parts.ledger,
            self.parts.telemetry,
            ttl_ms=int(config.reservations.ttl_seconds * 1000),
            sweep_ms=int(config.reservations.sweep_seconds * 1000),
            on_lost=OnLost(config.reservations.on_lost),
        )
        self._allow_anonymous = allow_anonymous
        self._is_server = is_server
        self._admin_key = environ.get(ADMIN_KEY_VARIABLE, "")
        self._operator = OperatorFile.of_store(config.storage.store)
        self.access = Access(
            lambda: self.parts.control.snapshot,
            admin_key=self._admin_key,
            operator_token=self._operator.token,
            clock_ms=wall_clock_ms,
            timer_s=time.monotonic,
        )
        limits = AnswerLimits(config.answers.bytes_max, config.answers.answer_bytes_max)
        self._answer_storage = answer_storage_for(config.storage.ledger, limits, wall_clock_ms)
        handler, intake, self._ending = self._pipeline()
        self._router = RequestRouter(
            protocols=PROTOCOLS,
            handler=self.parts.tracing.handler(handler),
            intake=intake,
            control=_application(self._routes(), self.parts.ids.new),
            model_names=lambda: self.parts.pool.names,
            count_prompt=self._count_prompt,
            new_id=self.parts.ids.new,
        )
        self._stack = AsyncExitStack()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._router(scope, receive, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:  # noqa: BLE001 - the server reports the reason and ends the process
            _log.debug("start_failed", exc_info=True)
            await self._stack.aclose()
            await send({"type": "lifespan.startup.failed", "message": f"farebox: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        except asyncio.CancelledError:
            return  # a second signal ends the process without a shutdown; the server would log a traceback
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def start(self) -> None:
        """Raises `ConfigError`, `StoreError` or `LedgerError`, each with one sentence that says what to do."""
        parts, stack = self.parts, self._stack
        has_stars = any(STAR in entry.model_name for entry in self.config.model_list)
        if faults := parts.prices.check(parts.deployments, has_stars=has_stars):
            raise ConfigError(faults)
        # First, because long-lived objects made meanwhile would keep the memory that this needs from being freed again.
        await parts.tokenizer.load(*_encodings(parts.deployments))
        await self._open_store()
        stack.push_async_callback(parts.store.close)
        server = self.config.server
        self._operator.write(local_address(server.host, server.port) if self._is_server else "")
        stack.callback(self._operator.remove)
        await parts.ledger.open()
        stack.push_async_callback(parts.ledger.close)
        await parts.control.start()
        stack.push_async_callback(parts.control.stop)
        if isinstance(parts.ledger, SqliteLedger):
            await parts.rebuilding.of_embedded(parts.ledger)
        if self._is_server:
            check_binding(
                server.host, parts.control.snapshot, admin_key=self._admin_key, allow_anonymous=self._allow_anonymous
            )
            await self._announce_first_login()
        await parts.clock.start()
        stack.push_async_callback(parts.clock.stop)
        flushing = asyncio.create_task(parts.flusher.run(), name="flusher")
        stack.push_async_callback(self._stop_flusher, flushing)
        housekeeping = asyncio.create_task(run_housekeeping_daily(parts.store, retention_of(self.config)), name="tidy")
        stack.push_async_callback(cancel, housekeeping)
        stack.push_async_callback(parts.tracing.stop)
        runs_in_progress = RunsInProgress(self._heartbeat.calls, parts.store)
        background_parts: tuple[Alerts | BatchRecorder | Gauges | Heartbeat | RunsInProgress, ...]
        background_parts = (parts.alerts, parts.recorder, self._gauges, self._heartbeat, runs_in_progress)
        for part in background_parts:
            part.start()
            stack.push_async_callback(part.stop)
        stack.push_async_callback(self._answer_storage.close)
        stack.push_async_callback(parts.forwarder.close)
        stack.push_async_callback(self._ending.drain)
        await parts.orchestration.start()
        stack.push_async_callback(parts.orchestration.stop)
        parts.forwarder.prepare(parts.deployments)

    async def stop(self) -> None:
        """Settle the calls in flight, flush the outbox, then close everything in reverse order."""
        await self._stack.aclose()
        self.parts.tokenizer.close()

    async def _open_store(self) -> None:
        store = self.parts.store
        try:
            await store.open(waits=self._is_server)
            if store.is_postgres:
                await store.check_schema()
            else:
                await store.migrate(wall_clock_ms())
        except StoreUnavailable as error:
            # A gateway can serve from its ledger while the store is unreachable, but not with a wrong schema or a file in use.
            _log.warning("store_unavailable_at_start", error=str(error))

    async def _stop_flusher(self, task: asyncio.Task[None]) -> None:
        await self.parts.flusher.stop()
        await asyncio.gather(task, return_exceptions=True)

    def _pipeline(self) -> tuple[CallHandler, Intake, Ending]:
        parts, config = self.parts, self.config
        intake = _intake(parts, open_to="nobody" if self._admin_key else parts.open_to)
        reserving = Reserving(
            parts.ledger,
            local=parts.ledger if isinstance(parts.ledger, OutageLedger) else None,
            runs=parts.runs,
            is_outbox_full=lambda: parts.flusher.is_full,
        )
        fitting = fitting_for(parts, reserving)
        forwarding = Forwarding(
            upstream=parts.tracing.upstream(parts.forwarder),
            pool=parts.pool,
            reserving=reserving,
            fitting=fitting,
            in_flight=self._heartbeat,
            timeouts=timeouts_of(config),
        )
        settler = Settler(
            ledger=parts.ledger,
            recorder=parts.recorder,
            telemetry=parts.telemetry,
            alerts=parts.alerts,
            now_ms=parts.clock.now_ms,
            fitting=fitting,
            on_usage_reported=parts.orchestration.answered,
        )
        ending = Ending(settler=settler, ledger=parts.ledger, in_flight=self._heartbeat, pool=parts.pool)
        relaying = Relaying(
            forwarding=forwarding,
            counter_for=self._counter_for,
            keeper_for=lambda call: HoldKeeper(call, reserving, slice_tokens=config.reservations.slice_tokens),
            in_flight=self._heartbeat,
            ending=ending,
            judge=parts.orchestration,
        )
        handler = CallHandler(
            intake=intake,
            admission=admission_for(parts, fitting),
            relaying=relaying,
            settler=settler,
            ending=ending,
            concurrency=parts.concurrency,
            idempotency=Idempotency(self._answer_storage, keep_ms=int(config.answers.idempotency_seconds * 1000)),
            cache=AnswerCache(parts.pool.cache_ttl_s, self._answer_storage),
            loop_breaker=LoopBreaker(parts.ledger, parts.alerts, config.loops),
            new_run_limit=NewRunLimit(config.server.new_runs_per_minute_max, time.monotonic),
            new_id=parts.ids.new,
        )
        return handler, intake, ending

    def _counter_for(self, call: Call) -> Any:
        deployment = call.deployment
        assert deployment is not None  # noqa: S101 - an answer comes from somewhere
        return lambda: self.parts.tokenizer.output_counter(deployment.model, deployment.provider)

    async def _count_prompt(self, request: Request) -> int:
        deployments = self.parts.pool.of(request.model)
        if not deployments:  # for `auto` the model is only chosen by a call
            raise ModelNotFound(f"Name a model to count for; {request.model[:200]!r} is none.", param="model")
        deployment = deployments[0]
        count = await self.parts.tokenizer.count_prompt("messages", request.body, deployment.model, deployment.provider)
        return count.tokens

    def _routes(self) -> list[BaseRoute]:
        check = partial(self.access.check, needed="viewer") if self.config.server.metrics_auth else None
        health = health_routes(self._gauges.readiness, self._exposition, check)
        control = LazyApplication(self._control)
        return [*health, Route("/", _redirect_to_pages), PrefixRoute("/api", control), PrefixRoute("/admin", control)]

    def _control(self) -> ASGIApp:
        # A tenth of the imports of a start, and 7 MB, for requests that most processes never get.
        from gateway.admin.application import admin_routes
        from gateway.endpoints.api.application import api_routes
        from gateway.endpoints.api.assembly import make_api_services

        services, new_id = make_api_services(self.parts, self.access), self.parts.ids.new
        pages = LazyApplication(lambda: _application(admin_routes(services), new_id))
        api = _application(api_routes(services), new_id)
        return _application([Mount("/api", api), PrefixRoute("/admin", pages)], new_id)

    async def _announce_first_login(self) -> None:
        is_open = self.access.is_open() and is_loopback(self.config.server.host)
        if not is_open and self.parts.control.snapshot.is_loaded:
            from gateway.admin.first_login import print_first_login_link

            await print_first_login_link(self.config.server, self.parts.store, wall_clock_ms())

    async def _exposition(self) -> bytes:
        self._gauges.refresh()
        return await asyncio.to_thread(self.parts.telemetry.exposition)  # it reads the files of all workers


async def _redirect_to_pages(_: HttpRequest) -> RedirectResponse:
    return RedirectResponse("/admin")


def _application(routes: list[BaseRoute], new_id: Callable[[], str]) -> Starlette:
    application = Starlette(routes=routes, exception_handlers={HTTPException: not_found_handler(new_id)})
    # Starlette would redirect `/metrics/` to an address made from the client's own Host header.
    application.router.redirect_slashes = False
    return application


def _encodings(deployments: Iterable[Deployment]) -> Iterable[str]:
    """Those of the configured models and the default one, because building a table later would block the loop."""
    configured = (counting_for(deployment.model, deployment.provider).encoding for deployment in deployments)
    return dict.fromkeys((DEFAULT_ENCODING, *configured))


def _intake(parts: Parts, *, open_to: OpenTo) -> Intake:
    return Intake(
        snapshot=lambda: parts.control.snapshot,
        is_model=lambda name: bool(parts.pool.of(name)),
        runs=parts.runs,
        body_bytes_max=parts.config.server.body_bytes_max,
        new_id=parts.ids.new,
        clock_ms=wall_clock_ms,
        open_to=open_to,
    )
