"""What is said about steps and about this deployment."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.dependencies import Document
from catalog.jobs.states import Queue


class StepDescription(Document):
    """One technique."""

    type: str
    mode: str | None
    """Set where a type has several modes, each with parameters of its own."""
    description: str
    defaults: dict[str, Any]
    """Values of the parameters that are left out."""
    parameters: dict[str, Any] = Field(alias="schema", serialization_alias="schema")
    """JSON Schema (2020-12) of the step as it stands in a pipeline."""


class Steps(Document):
    steps: list[StepDescription]
    pipeline: dict[str, Any]
    """JSON Schema (2020-12) of any step of a pipeline."""


class QueueDescription(Document):
    name: Queue
    workers: int
    """Live workers; jobs wait while there is none."""
    providers: list[str]
    """ONNX Runtime's execution providers that some of them have: what `benchmark.provider` can name."""


class WorkerDescription(Document):
    id: str | None
    """Null, as the host, for keys without the scope `metrics`: tenants need not know the operator's machines."""
    host: str | None
    queue: Queue
    concurrency: int
    capabilities: dict[str, Any]
    """CPU flags (`isa`), `gpus`, `providers`, `sandbox` level and what its children
    can `reach` (`network`, `files`, `processes`), as tried when it started, library versions, limits."""


class Limits(Document):
    max_upload_bytes: int
    upload_part_bytes: int
    max_json_bytes: int
    max_wait_seconds: int
    max_attempts: int
    """Default of a job's `max_attempts`."""
    job_time_limit_seconds: float
    """Default of a job's `time_limit_seconds`."""
    max_job_time_limit_seconds: float


class Formats(Document):
    models: list[str]
    datasets: list[str]


class Capabilities(Document):
    version: str
    queues: list[QueueDescription]
    """Queues that jobs can name."""
    isa: list[str]
    """CPU flags that all live workers of the queue `cpu` have."""
    gpus: list[dict[str, Any]]
    """Devices of the live workers of the queue `gpu`."""
    sandbox: list[str]
    """Levels of confinement that live workers apply."""
    workers: list[WorkerDescription]
    limits: Limits
    formats: Formats
