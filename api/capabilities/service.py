"""What can be asked for, and what this deployment can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import get_args

from pydantic import BaseModel, TypeAdapter

from api.dependencies import MAX_WAIT_SECONDS, Services
from api.json_body import MAX_BODY_BYTES
from catalog.db import Json
from catalog.jobs.states import Queue
from catalog.keys.repository import Principal
from catalog.keys.scopes import Scope
from catalog.workers.repository import Workers
from catalog.workers.tables import WorkerRow
from compression.data_spec import DatasetFormat
from compression.signature import ModelSummary
from compression.spec import Step, StepSpec, step_classes

JOB_QUEUES = (Queue.CPU, Queue.GPU)


@cache
def steps() -> Json:
    """Every step of `compression.spec.Step`: its JSON Schema, defaults and description."""
    return {
        "steps": [_describe(spec) for spec in step_classes()],
        "pipeline": TypeAdapter(Step).json_schema(),
    }


def capabilities(services: Services, caller: Principal) -> Json:
    """What live workers say of themselves, and the limits of this service."""
    operator = Scope.METRICS in caller.scopes
    settings = services.settings
    with services.database.read() as session:
        workers = Workers(session).alive(seconds=settings.lease_seconds)
    live = Counter(worker.queue for worker in workers)
    flags = [set(worker.capabilities.get("isa", ())) for worker in workers if worker.queue == Queue.CPU]
    return {
        "version": version("levity"),
        "queues": [
            {"name": queue, "workers": live[queue], "providers": _providers(workers, queue)} for queue in JOB_QUEUES
        ],
        "isa": sorted(set.intersection(*flags)) if flags else [],
        "gpus": [gpu for worker in workers if worker.queue == Queue.GPU for gpu in worker.capabilities.get("gpus", ())],
        "sandbox": sorted({worker.capabilities["sandbox"] for worker in workers if "sandbox" in worker.capabilities}),
        "workers": [
            {
                "id": worker.id if operator else None,
                "host": worker.host if operator else None,
                "queue": worker.queue,
                "concurrency": worker.concurrency,
                "capabilities": worker.capabilities,
            }
            for worker in workers
        ],
        "limits": {
            "max_upload_bytes": settings.max_upload_bytes,
            "upload_part_bytes": settings.upload_part_bytes,
            "max_json_bytes": MAX_BODY_BYTES,
            "max_wait_seconds": MAX_WAIT_SECONDS,
            "max_attempts": settings.max_attempts,
            "job_time_limit_seconds": settings.job_time_limit_seconds,
            "max_job_time_limit_seconds": settings.max_job_time_limit_seconds,
        },
        "formats": {
            "models": list(get_args(ModelSummary.model_fields["format"].annotation)),
            "datasets": list(get_args(DatasetFormat)),
        },
    }


def _providers(workers: Sequence[WorkerRow], queue: Queue) -> list[str]:
    return sorted({name for one in workers if one.queue == queue for name in one.capabilities.get("providers", ())})


def _describe(spec: type[StepSpec]) -> Json:
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in spec.model_fields.items()
        if not field.is_required()
    }
    return {
        "type": defaults["type"],
        "mode": defaults.get("mode"),
        "description": (spec.__doc__ or "").strip(),
        "defaults": {name: _plain(value) for name, value in defaults.items()},
        "schema": spec.model_json_schema(),
    }


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
