"""Probes: is the process alive, and can it serve."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter

from api.dependencies import Document, ProcessServices
from api.errors import RequestError
from api.json_body import Json
from api.openapi import problems

logger = logging.getLogger(__name__)

router = APIRouter(tags=["health"])

_CHECK_SECONDS = 3


class Liveness(Document):
    status: Literal["alive"]


class Readiness(Document):
    status: Literal["ready", "degraded"]
    """`degraded`: the broker is down; jobs are taken, but workers find them later."""
    checks: dict[Literal["database", "store", "broker"], Literal["ok", "failed"]]


@router.get(
    "/livez",
    operation_id="get_liveness",
    summary="Whether the process is alive",
    response_model=Liveness,
    responses=problems(),
)
async def get_liveness() -> Json:
    """Touches nothing."""
    return Json({"status": "alive"})


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Whether requests can be served",
    response_model=Readiness,
    responses=problems("not_ready"),
)
async def get_readiness(services: ProcessServices) -> Json:
    """Asks the database, the blob store and the broker. Without a broker the service is degraded and still ready."""
    probes: dict[str, Callable[[], object]] = {
        "database": services.database.ping,
        "store": services.blobs.ping,
        "broker": services.wakeups.broker_answers,
    }
    checks = dict.fromkeys(probes, "failed")

    async def check(name: str, probe: Callable[[], object]) -> None:
        with anyio.move_on_after(_CHECK_SECONDS):
            try:
                # Every client library has errors of its own for a server that is not there.
                if await run_sync(probe, abandon_on_cancel=True) is not False:
                    checks[name] = "ok"
            except Exception as error:  # noqa: BLE001
                logger.warning("%s does not answer: %s", name, error)

    async with anyio.create_task_group() as group:
        for name, probe in probes.items():
            group.start_soon(check, name, probe)
    down = [name for name in ("database", "store") if checks[name] == "failed"]
    if down:
        raise RequestError("not_ready", f"Does not answer: {', '.join(down)}.")
    return Json({"status": "ready" if checks["broker"] == "ok" else "degraded", "checks": checks}, HTTPStatus.OK)
