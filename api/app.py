"""The HTTP service. Start it with `uvicorn api.app:create_app --factory`."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.metadata import version

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline

from api import errors, health, metrics, openapi
from api.authentication import PROBES, AuthenticationMiddleware
from api.capabilities.endpoints import router as capabilities_router
from api.datasets.endpoints import router as datasets_router
from api.dependencies import Services
from api.jobs.endpoints import router as jobs_router
from api.keys.endpoints import router as keys_router
from api.metrics import Metrics
from api.middleware import RequestMiddleware
from api.models.endpoints import router as models_router
from api.rate_limits import RateLimitMiddleware
from api.shutdown import notice_signals
from api.uploads.endpoints import router as uploads_router
from api.usage.endpoints import router as usage_router
from api.webhooks.endpoints import router as webhooks_router
from catalog import logs, tracing
from catalog.blobs import Blobs
from catalog.db import Database
from catalog.jobs.states import Queue
from catalog.keys.repository import any_key
from catalog.settings import Settings
from catalog.storage.ledger import DatabaseLedger

logger = logging.getLogger(__name__)

_WRITER_THREADS = 8
_GARBAGE_OBJECTS = 20_000
_TIDY_SECONDS = 3600
# Asked every few seconds by machines: neither traced, nor logged while all is well.
_UNTRACED = (*PROBES, "/metrics")
_DESCRIPTION = """
Levity takes weight off neural networks. Upload a model and data, post a job that says what to do, and fetch smaller,
faster files with measured numbers.

Errors are [problem details](https://www.rfc-editor.org/rfc/rfc9457) with a stable `code`. Every response carries
`X-Request-ID`. Where the service asks for keys, send `Authorization: Bearer lv_…`; what belongs to another tenant is
answered like what does not exist. Times are UTC. Lists come in pages, newest first.
"""
_TAGS = [
    {"name": "uploads", "description": "Bytes on their way in."},
    {"name": "models", "description": "Neural networks, inspected."},
    {"name": "datasets", "description": "Samples for calibration and evaluation, inspected."},
    {"name": "jobs", "description": "Runs of a pipeline on a model, their events and what came out."},
    {"name": "webhooks", "description": "Receivers of events, signed as Standard Webhooks."},
    {"name": "keys", "description": "Who may do what, and who did."},
    {"name": "capabilities", "description": "What can be asked for, and what this deployment can do."},
    {"name": "health", "description": "Probes and metrics."},
]


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; `settings` come from the environment unless given."""
    chosen = Settings() if settings is None else settings
    if settings is None:
        # The process is ours, and so are its logs. Who embeds the application in a process decides about that.
        logs.configure(chosen, "api", text="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("uvicorn.access").addFilter(_is_no_probe)
        tracing.start("levity-api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = await run_sync(_open, chosen)
        app.state.services = services
        tidying = asyncio.create_task(_tidy(services.blobs))
        if settings is None:
            _spare_the_collector()
        with notice_signals(services.stopping):
            yield
        tidying.cancel()
        await run_sync(services.database.dispose)
        if settings is None:
            await run_sync(tracing.stop)

    app: FastAPI = FastAPIOffline(
        title="Levity",
        version=version("levity"),
        summary="Compression of neural networks as a service",
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=_TAGS,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=_telemetry(),
    )
    # They are searched in turn: first what is asked most.
    for router in (
        jobs_router,
        uploads_router,
        models_router,
        datasets_router,
        webhooks_router,
        keys_router,
        usage_router,
        capabilities_router,
    ):
        app.include_router(router)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.add_middleware(RateLimitMiddleware, settings=chosen)
    app.add_middleware(AuthenticationMiddleware, settings=chosen)
    app.add_middleware(RequestMiddleware, allowed_hosts=chosen.allowed_hosts)
    errors.install(app)
    app.openapi = openapi.document(app)  # type: ignore[method-assign] # FastAPI's documented way to extend it
    return app


def _is_no_probe(record: logging.LogRecord) -> bool:
    """Whether a line of the access log tells of more than a machine that asks every few seconds, and is answered."""
    match record.args:
        case (_, _, str(path), _, int(status)):
            return path not in _UNTRACED or status >= HTTPStatus.BAD_REQUEST
    return True


def _spare_the_collector() -> None:
    """Keep what is there for good out of every search for garbage: requests leave little, and paid for all of it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS, *gc.get_threshold()[1:])


def _telemetry() -> TelemetryConfig:
    """Spans of requests, where this process is traced; what else FastAPI could tell is counted or logged already."""
    provider = tracing.provider()
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in _UNTRACED,
    }


async def _tidy(blobs: Blobs) -> None:
    """Now and then remove what uploads left whose process was killed. Workers do so on machines that have one."""
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        try:
            await run_sync(blobs.remove_abandoned)
        except OSError as error:
            logger.warning("staged files could not be removed: %s", error)


def _open(settings: Settings) -> Services:
    # Celery takes a third of a second to import: not before it is needed.
    from catalog.broker import Wakeups, build_celery  # noqa: PLC0415

    database = Database(settings.resolved_database_url)
    database.prepare(migrate=settings.migrate)
    with database.read() as session:
        if any_key(session) != (settings.auth == "keys"):
            logger.warning(
                "LEVITY_AUTH is %s, but there are %s valid API keys",
                settings.auth,
                "no" if settings.auth == "keys" else "some",
            )
    blobs = Blobs.from_settings(settings, DatabaseLedger(database))
    blobs.remove_abandoned()
    wakeups = Wakeups(build_celery(settings, only_sends=True))
    database.after_outbox = partial(wakeups.wake, Queue.IO)
    return Services(
        settings=settings,
        database=database,
        blobs=blobs,
        wakeups=wakeups,
        metrics=Metrics(database, blobs, worker_silence_seconds=settings.lease_seconds),
        writer_threads=CapacityLimiter(_WRITER_THREADS),
        stopping=asyncio.Event(),
    )
