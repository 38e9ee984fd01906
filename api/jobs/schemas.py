"""What is said about jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field

from api.dependencies import Body, Document, Page
from api.uploads.schemas import Sha256
from api.webhooks.schemas import JobWebhook
from catalog.db import Json
from catalog.jobs.states import AttemptOutcome, JobState
from catalog.jobs.tables import ArtifactRow, AttemptRow, EventRow, JobRow
from catalog.times import rfc3339
from compression._spec_base import DataRole
from compression.result import Measured, Metric, StepResult
from compression.spec import BenchmarkSpec, PipelineSpec, Step

_DAY_SECONDS = 24 * 3600.0

Seconds = Annotated[float, Field(gt=0, le=365 * _DAY_SECONDS, allow_inf_nan=False)]


class JobData(Body):
    """Datasets by what they are for."""

    calibration: str | None = None
    """Dataset that static quantization and GPTQ run through the model."""
    training: str | None = None
    """Dataset that steps which train learn from."""
    evaluation: str | None = None
    """Dataset that accuracy and agreement are measured on."""


def _in_legal_order(pipeline: tuple[Step, ...]) -> tuple[Step, ...]:
    PipelineSpec.check_order(pipeline)
    return pipeline


class CreateJob(Body):
    """Asks for a pipeline to be run on a model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_id": "mdl_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                    "pipeline": [{"type": "prune", "amount": 0.5}, {"type": "quantize", "mode": "static"}],
                    "data": {
                        "calibration": "dts_0193f0c2a6b77c0d8a4be21d09f1a2b4",
                        "evaluation": "dts_0193f0c2a6b77c0d8a4be21d09f1a2b5",
                    },
                    "name": "half the weights, int8",
                    "labels": {"team": "vision"},
                },
                {
                    "model_id": "mdl_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                    "pipeline": [{"type": "quantize", "mode": "dynamic"}],
                },
            ]
        }
    )

    model_id: str
    """The model to work on."""
    student_id: str | None = None
    """The model that a `distill` step with a student of kind `model` trains; the result is then this model."""
    pipeline: Annotated[tuple[Step, ...], AfterValidator(_in_legal_order)] = Field(
        max_length=32, json_schema_extra={"minItems": 1}
    )
    """Steps in the order in which they are applied; `/v1/steps` lists what there is."""
    data: JobData = JobData()
    benchmark: BenchmarkSpec = BenchmarkSpec()
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""
    name: str = Field(default="", max_length=255)
    """What people call it."""
    labels: dict[Annotated[str, Field(min_length=1, max_length=63)], Annotated[str, Field(max_length=255)]] = Field(
        default={}, max_length=64
    )
    """Free text by key, for the caller's own bookkeeping."""
    queue: Literal["cpu", "gpu"] = "cpu"
    priority: int = Field(default=0, ge=0, le=9)
    """Higher is served first."""
    time_limit_seconds: Seconds | None = None
    """Wall time that an attempt may take; then the job expires. `/v1/capabilities` has the default and the maximum."""
    start_within_seconds: Seconds | None = None
    """The job expires when no worker took it by then."""
    max_attempts: int | None = Field(default=None, ge=1, le=100)
    """Tries before a dying worker or child makes it fail. `/v1/capabilities` has the default."""
    webhook: JobWebhook | None = None
    """Is told of this job, beside the webhooks of all jobs; `GET /v1/webhooks?job_id=…` finds it and its deliveries."""


class JobError(Document):
    """Why a job, or an attempt at it, did not succeed."""

    code: str
    message: str
    retryable: bool
    """True when the same job may succeed at another time or on another machine."""
    attempt: int
    log_tail: str
    """The end of what the attempt wrote to its log."""


class Artifact(Document):
    """A file that came out of a job."""

    name: str
    sha256: Sha256
    size: int
    """Bytes."""
    media_type: str
    url: str


class Links(Document):
    self: str
    model: str
    events: str
    attempts: str
    artifacts: str


class Job(Document):
    """One run of a pipeline on a model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "job_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                    "name": "half the weights",
                    "labels": {"team": "vision"},
                    "model_id": "mdl_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                    "student_id": None,
                    "data": {},
                    "pipeline": [{"type": "prune", "amount": 0.5}],
                    "benchmark": BenchmarkSpec().model_dump(mode="json"),
                    "seed": 0,
                    "queue": "cpu",
                    "priority": 0,
                    "state": "running",
                    "phase": "pruning",
                    "progress": 0.2,
                    "message": "",
                    "attempt": 1,
                    "max_attempts": 3,
                    "cancel_requested": False,
                    "time_limit_seconds": 3600.0,
                    "created_at": "2026-11-24T17:23:35.816Z",
                    "started_at": "2026-11-24T17:23:35.901Z",
                    "finished_at": None,
                    "error": None,
                    "metrics": None,
                    "measured": None,
                    "steps": None,
                    "notes": None,
                    "artifacts": [],
                    "links": {
                        "self": "/v1/jobs/job_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                        "model": "/v1/models/mdl_0193f0c2a6b77c0d8a4be21d09f1a2b3",
                        "events": "/v1/jobs/job_0193f0c2a6b77c0d8a4be21d09f1a2b3/events",
                        "attempts": "/v1/jobs/job_0193f0c2a6b77c0d8a4be21d09f1a2b3/attempts",
                        "artifacts": "/v1/jobs/job_0193f0c2a6b77c0d8a4be21d09f1a2b3/artifacts",
                    },
                }
            ]
        }
    )

    id: str
    name: str
    labels: dict[str, str]
    model_id: str
    student_id: str | None
    data: dict[DataRole, str]
    """Dataset ids by role."""
    pipeline: list[Step]
    benchmark: BenchmarkSpec
    seed: int
    queue: Literal["cpu", "gpu"]
    priority: int
    state: JobState
    phase: str
    """What the attempt is at: `loading`, a step's work, `benchmarking`, `publishing`; empty while queued."""
    progress: float = Field(ge=0, le=1)
    """Share of the work that is done."""
    message: str
    attempt: int
    """Number of the current or last attempt; 0 before the first."""
    max_attempts: int
    cancel_requested: bool
    time_limit_seconds: float
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    error: JobError | None
    metrics: list[Metric] | None
    """What was measured, of the original and of the result; null until the job succeeded."""
    measured: Measured | None
    """How it was measured; null until the job succeeded."""
    steps: list[StepResult] | None
    """What each step did; null until the job succeeded."""
    notes: list[str] | None
    """What a reader must know in words; null until the job succeeded."""
    artifacts: list[Artifact]
    links: Links


class JobPage(Page):
    items: list[Job]


class ArtifactList(Document):
    items: list[Artifact]
    next_cursor: None


class Attempt(Document):
    """One try at a job."""

    number: int
    owner: str
    """The worker."""
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    outcome: AttemptOutcome | None
    """Null while it runs."""
    error: JobError | None


class AttemptList(Document):
    items: list[Attempt]
    next_cursor: None


class Event(Document):
    """Something that happened to a job."""

    seq: int
    """Counts within the job, from 1, without gaps."""
    at: AwareDatetime
    type: str
    """`queued`, `running`, `progress`, `step`, `cancel_requested`, or a terminal state."""
    attempt: int
    data: dict[str, Any]


class EventPage(Document):
    items: list[Event]
    next_cursor: str | None
    """Give it as `after` to get the next page; null when these are the newest."""


def job_json(row: JobRow, data: Mapping[str, str], artifacts: Sequence[ArtifactRow]) -> Json:
    """A job as `Job` describes it. What is stored was checked before it was stored, and is not checked again."""
    url = f"/v1/jobs/{row.id}"
    result: Json = row.result or {}
    return {
        "id": row.id,
        "name": row.name,
        "labels": row.labels,
        "model_id": row.model_id,
        "student_id": row.student_id,
        "data": data,
        "pipeline": row.spec["steps"],
        "benchmark": row.spec["benchmark"],
        "seed": row.spec["seed"],
        "queue": row.queue,
        "priority": row.priority,
        "state": row.state,
        "phase": row.phase,
        "progress": row.progress,
        "message": row.message,
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "cancel_requested": row.cancel_requested,
        "time_limit_seconds": row.time_limit_seconds,
        "created_at": rfc3339(row.created_at),
        "started_at": rfc3339(row.started_at),
        "finished_at": rfc3339(row.finished_at),
        "error": row.error,
        "metrics": result.get("metrics"),
        "measured": result.get("measured"),
        "steps": result.get("steps"),
        "notes": result.get("notes"),
        "artifacts": [artifact_json(artifact) for artifact in artifacts],
        "links": {
            "self": url,
            "model": f"/v1/models/{row.model_id}",
            "events": f"{url}/events",
            "attempts": f"{url}/attempts",
            "artifacts": f"{url}/artifacts",
        },
    }


def artifact_json(row: ArtifactRow) -> Json:
    return {
        "name": row.name,
        "sha256": row.sha256,
        "size": row.size,
        "media_type": row.media_type,
        "url": f"/v1/jobs/{row.job_id}/artifacts/{row.name}",
    }


def attempt_json(row: AttemptRow) -> Json:
    return {
        "number": row.number,
        "owner": row.owner,
        "started_at": rfc3339(row.started_at),
        "ended_at": rfc3339(row.ended_at),
        "outcome": row.outcome,
        "error": row.error,
    }


def event_json(row: EventRow) -> Json:
    return {
        "seq": row.seq,
        "at": rfc3339(row.at),
        "type": row.type,
        "attempt": row.attempt,
        "data": row.data,
    }
