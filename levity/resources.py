"""What the service answers, as frozen records.

Each keeps the fields that callers use most and, in `raw`, the whole JSON object, so that a newer service's additions
are within reach. Times are RFC 3339 strings in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled", "expired"})

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """An object of the service."""

    raw: Json = field(repr=False, compare=False)
    """All that the service said."""

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Pick the known fields out of the service's JSON; null leaves a field at its default."""
        known = {entry.name: body[entry.name] for entry in fields(cls) if body.get(entry.name) is not None}
        return cls(**{**known, "raw": dict(body)})


@dataclass(frozen=True, kw_only=True)
class Upload(Resource):
    """Bytes in the service's store, or on their way there."""

    id: str
    state: str
    """`open` or `complete`."""
    sha256: str | None = None
    size: int | None = None
    part_size: int
    """Bytes of each part but the last, as the service suggests."""
    parts: list[Json] = field(default_factory=list)
    """`{number, size, sha256}` of each part that arrived."""


@dataclass(frozen=True, kw_only=True)
class Model(Resource):
    """A registered model."""

    id: str
    name: str | None = None
    state: str
    """`inspecting`, `ready` or `rejected`."""
    sha256: str | None = None
    size: int | None = None
    summary: Json | None = None
    """Signature, operators, parameters, MACs; None until it was inspected."""
    source: Json | None = None
    """Architecture and upload that the graph was made from; None for an ONNX upload."""
    error: Json | None = None
    """`{code, message}` when rejected."""


@dataclass(frozen=True, kw_only=True)
class Dataset(Resource):
    """A registered dataset."""

    id: str
    name: str | None = None
    state: str
    """`inspecting`, `ready` or `rejected`."""
    sha256: str | None = None
    size: int | None = None
    summary: Json | None = None
    """Arrays, samples, classes; None until it was inspected."""
    error: Json | None = None
    """`{code, message}` when rejected."""


@dataclass(frozen=True, kw_only=True)
class Metric(Resource):
    """One measured quantity, of the original and of the result."""

    name: str
    unit: str
    direction: str
    """`lower_is_better` or `higher_is_better`."""
    original: float | None = None
    """None for metrics that compare the two."""
    result: float
    ratio: float | None = None
    """Above 1 is an improvement."""
    interval: list[float] | None = None
    """The 95 % interval of what `interval_of` names."""
    interval_of: str | None = None
    """`ratio`, `difference` (result - original) or `result`."""
    p_value: float | None = None
    """Of McNemar's exact test, for shares of samples that are right or wrong."""
    samples: int | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Artifact(Resource):
    """A file that a job published."""

    name: str
    sha256: str
    size: int
    media_type: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Event(Resource):
    """Something that happened to a job."""

    seq: int
    at: str
    type: str
    """`queued`, `running`, `progress`, `step`, `cancel_requested`, or a terminal state."""
    attempt: int
    data: Json


@dataclass(frozen=True, kw_only=True)
class Job(Resource):
    """One run of a pipeline on a model."""

    id: str
    name: str | None = None
    model_id: str | None = None
    state: str
    """`queued`, `running`, `succeeded`, `failed`, `cancelled` or `expired`."""
    phase: str | None = None
    progress: float = 0.0
    """Share of the work that is done, 0 to 1."""
    message: str | None = None
    attempt: int = 0
    created_at: str | None = None
    finished_at: str | None = None
    measured: Json = field(default_factory=dict)
    """How it was measured: `conditions` of timing."""
    error: Json | None = None
    """`{code, message, retryable, attempt, log_tail}` of the last attempt that failed."""
    steps: list[Json] = field(default_factory=list)
    """What each step did."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know in words."""

    @property
    def terminal(self) -> bool:
        """Whether nothing but a retry changes it any more."""
        return self.state in TERMINAL_STATES

    @property
    def metrics(self) -> list[Metric]:
        """What was measured; empty until the job succeeded."""
        return [Metric.from_json(entry) for entry in self.raw.get("metrics") or ()]

    @property
    def artifacts(self) -> list[Artifact]:
        """Published files; empty until the job succeeded."""
        return [Artifact.from_json(entry) for entry in self.raw.get("artifacts") or ()]


@dataclass(frozen=True, kw_only=True)
class Webhook(Resource):
    """A receiver of events."""

    id: str
    url: str
    events: list[str]
    description: str = ""
    enabled: bool
    disabled_reason: Json | None = None
    """`{code, message, at}` while it is not enabled."""
    job_id: str | None = None
    """The only job that it hears of; None for all."""
    failing_since: str | None = None
    previous_secret_expires_at: str | None = None
    secret: str | None = field(default=None, repr=False)
    """Known once, when it was made."""


@dataclass(frozen=True, kw_only=True)
class Delivery(Resource):
    """An event on its way to a webhook."""

    id: str
    """The header `webhook-id`."""
    webhook_id: str
    type: str
    state: str
    """`waiting`, `sending`, `delivered` or `failed`."""
    job_id: str | None = None
    payload: Json = field(default_factory=dict)
    attempts: list[Json] = field(default_factory=list)
    """`{number, started_at, duration_seconds, status, error, response}` of each."""
    next_attempt_at: str | None = None
    created_at: str | None = None
