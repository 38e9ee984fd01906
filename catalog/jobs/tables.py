"""Tables of jobs: what was asked, who works on it, what happened and what came out."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base, Json, db_now
from catalog.tenancy import DEFAULT_TENANT, Tenanted

_UNFINISHED = text("state IN ('queued', 'running')")


class JobRow(Tenanted, Base):
    """One run of a pipeline on a model, or the inspection of an upload."""

    __tablename__ = "jobs"
    # What the database sets, its clock above all, comes back with the insert.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy's form
    __table_args__ = (
        Index("ix_jobs_lease", "state", "lease_until"),
        Index("ix_jobs_list", "kind", "state", "id"),
        Index("ix_jobs_model_id", "model_id"),
        Index("ix_jobs_tenant", "tenant", "kind", "id"),
        Index("ix_jobs_student_id", "student_id"),
        # However many have ended, counting those that have not is cheap.
        Index(
            "ix_jobs_unfinished",
            "state",
            "queue",
            "kind",
            "available_at",
            postgresql_where=_UNFINISHED,
            sqlite_where=_UNFINISHED,
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(255), default="")
    labels: Mapped[Json]
    model_id: Mapped[str | None] = mapped_column(String(40))
    """The model to work on. No foreign key: the job's record outlives the model."""
    student_id: Mapped[str | None] = mapped_column(String(40))
    """The model that learns from it, where the pipeline distils into an uploaded one."""
    spec: Mapped[Json]
    """`compression.spec.PipelineSpec`; empty for inspections."""
    queue: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int] = mapped_column(default=0)
    """0 to 9; higher is served first."""
    state: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str] = mapped_column(String(32), default="")
    progress: Mapped[float] = mapped_column(default=0.0)
    """Share of the work that is done, 0 to 1."""
    message: Mapped[str] = mapped_column(String(1000), default="")
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of the current or last attempt: the fencing token that every write of a worker carries."""
    attempts_left: Mapped[int]
    max_attempts: Mapped[int]
    owner: Mapped[str | None] = mapped_column(String(80))
    lease_until: Mapped[float | None]
    available_at: Mapped[float] = mapped_column(default=db_now())
    """Not claimed before this time: back-off between attempts."""
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    time_limit_seconds: Mapped[float]
    expires_at: Mapped[float | None]
    """A job that has not started by then expires."""
    created_at: Mapped[float] = mapped_column(default=db_now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    error: Mapped[Json | None]
    """`{code, message, retryable, attempt, log_tail}`."""
    result: Mapped[Json | None]
    """`compression.result.PipelineResult`."""
    last_event: Mapped[int] = mapped_column(default=0)
    """Sequence number of the job's newest event."""
    request_id: Mapped[str] = mapped_column(String(64), default="")
    traceparent: Mapped[str | None] = mapped_column(String(64))
    """The request's span (W3C Trace Context), which attempts continue; null without tracing."""


# In the order in which a tenant's jobs are claimed.
Index("ix_jobs_claim", JobRow.queue, JobRow.state, JobRow.tenant, JobRow.priority.desc(), JobRow.id)


class JobDatasetRow(Base):
    """A dataset that a job uses, by role."""

    __tablename__ = "job_datasets"
    __table_args__ = (Index("ix_job_datasets_dataset_id", "dataset_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    """`calibration`, `training` or `evaluation`; for an inspection `subject`."""
    dataset_id: Mapped[str] = mapped_column(String(40))


class AttemptRow(Base):
    """One try at a job."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(80))
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[Json | None]


class EventRow(Base):
    """Something that happened to a job.

    `seq` counts within the job and is drawn from `jobs.last_event` under that row's lock, so a reader who has seen
    event n will never find an event below n appear later.
    """

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    type: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int]
    data: Mapped[Json]


class ArtifactRow(Base):
    """A published file of a job."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("ix_artifacts_sha256", "sha256"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    attempt: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(100))


class IdempotencyRow(Tenanted, Base):
    """A job submission that carried an Idempotency-Key."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(
        String(40), primary_key=True, default=DEFAULT_TENANT, server_default=DEFAULT_TENANT
    )
    """Two tenants may choose the same key."""
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[float]


class StepCacheRow(Tenanted, Base):
    """What a finished step left, by its key (`compression.cache.step_keys`).

    Within a tenant only: what another computed would be a file that this one never made, and a hit tells that somebody
    has the same model.
    """

    __tablename__ = "step_cache"
    __table_args__ = (Index("ix_step_cache_model", "tenant", "model_sha256"),)

    tenant: Mapped[str] = mapped_column(
        String(40), primary_key=True, default=DEFAULT_TENANT, server_default=DEFAULT_TENANT
    )
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    files: Mapped[list[Json]]
    """`{name, sha256, size}` of each file of the step's folder."""
    model_sha256: Mapped[str | None] = mapped_column(String(64))
    """`ModelRow.sha256` of the model that it was made from."""
    created_at: Mapped[float]
    used_at: Mapped[float]
