"""All SQL of the job protocol's worker side: claim, renew, progress, publish, fail, release, sweep.

A claim raises the job's `attempt`, and every later write names it: a worker that was stopped, taken for lost and then
resumed finds its attempt out of date and gets `Fenced` instead of overwriting its successor's work (fencing tokens:
Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    ScalarSelect,
    and_,
    bindparam,
    cast,
    func,
    insert,
    not_,
    select,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from catalog.datasets.states import DatasetState
from catalog.datasets.tables import DatasetRow
from catalog.db import Json, db_now
from catalog.errors import Fenced
from catalog.jobs.effort import Effort
from catalog.jobs.repository import append_event
from catalog.jobs.states import AttemptOutcome, JobKind, JobState, Queue
from catalog.jobs.tables import ArtifactRow, AttemptRow, JobDatasetRow, JobRow
from catalog.models.repository import contents
from catalog.models.states import ModelState
from catalog.models.tables import ModelRow
from catalog.storage.ledger import hold
from catalog.tenancy import DEFAULT_TENANT
from catalog.tenants.tables import TenantRow, UsageRow
from catalog.tenants.usage import HOUR_SECONDS, charge
from catalog.totals.metrics import (
    ARTIFACT_BYTES,
    ATTEMPT_SECONDS,
    ATTEMPTS,
    INPUT_BYTES,
    JOBS_ENDED,
    PHASE_SECONDS,
    STEP_SECONDS,
    WAIT_SECONDS,
)
from catalog.totals.repository import count, observe


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, until the lease runs out."""

    job_id: str
    attempt: int
    owner: str
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True)
class NewArtifact:
    """A file that an attempt made; its bytes are in the blob store already."""

    name: str
    sha256: str
    size: int
    media_type: str


class Leases:
    """The job protocol in one transaction.

    Args:
        session: The transaction.
        effort: What the attempt has taken, where the writer is its worker; counted when the attempt ends.
    """

    def __init__(self, session: Session, effort: Effort | None = None) -> None:
        self._session = session
        self._effort = effort

    def claim(self, queue: Queue, *, owner: str, lease_seconds: float) -> tuple[Claim, JobRow] | None:
        """Take the most urgent job that waits on `queue` of the tenant whose turn it is; None when there is none."""
        values = {"by": owner, "seconds": lease_seconds}
        row = self._session.scalars(_claim(queue, in_turn=True), values).one_or_none()
        if row is None:
            # The tenant's last job may just have gone to somebody else while other tenants' wait.
            row = self._session.scalars(_claim(queue, in_turn=False), values).one_or_none()
        if row is None:
            return None
        self._session.execute(
            insert(AttemptRow).values(job_id=row.id, number=row.attempt, owner=owner, started_at=db_now())
        )
        append_event(self._session, row.id, JobState.RUNNING, {"owner": owner})
        return Claim(row.id, row.attempt, owner, row.tenant), row

    def renew(self, claim: Claim, *, lease_seconds: float) -> None:
        """Keep the claim for another `lease_seconds`."""
        self._write(claim, lease_until=db_now() + lease_seconds)

    def cancel_requested(self, claim: Claim) -> bool:
        """Whether the caller wants the job to stop; raises `Fenced` when the claim is lost."""
        flag = self._session.scalar(
            select(JobRow.cancel_requested).where(
                JobRow.id == claim.job_id, JobRow.attempt == claim.attempt, JobRow.state == JobState.RUNNING
            )
        )
        if flag is None:
            raise _fenced(claim)
        return flag

    def progress(self, claim: Claim, *, phase: str, fraction: float, message: str) -> None:
        """Show where the attempt stands."""
        self._write(claim, phase=phase, progress=fraction, message=message[:1000])
        append_event(
            self._session, claim.job_id, "progress", {"phase": phase, "progress": fraction, "message": message[:1000]}
        )

    def note(self, claim: Claim, type_: str, data: Json) -> None:
        """Record an event of this attempt."""
        self._write(claim, lease_until=JobRow.lease_until)
        append_event(self._session, claim.job_id, type_, data)

    def publish(self, claim: Claim, *, artifacts: Sequence[NewArtifact], result: Json) -> JobState:
        """Make the attempt's files and numbers the job's result, all or nothing.

        A cancel request that came first wins: then nothing is published and the job is cancelled.
        """
        if self.cancel_requested_locked(claim):
            self.cancelled(claim)
            return JobState.CANCELLED
        job = self._finish(claim, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, result=result, progress=1.0, error=None)
        hold(self._session, [artifact.sha256 for artifact in artifacts])
        for artifact in artifacts:
            self._session.add(
                ArtifactRow(
                    job_id=claim.job_id,
                    name=artifact.name,
                    attempt=claim.attempt,
                    sha256=artifact.sha256,
                    size=artifact.size,
                    media_type=artifact.media_type,
                )
            )
        self._session.flush()
        count(self._session, ARTIFACT_BYTES, job.queue, by=sum(artifact.size for artifact in artifacts))
        return JobState.SUCCEEDED

    def publish_inspection(self, claim: Claim, *, summary: Json, files: Sequence[Json] = ()) -> None:
        """Make an inspection's summary known: the model or dataset is ready.

        Args:
            claim: The attempt.
            summary: What it found.
            files: `{name, sha256, size}` of what it made of a model's upload, which takes the upload's place.
        """
        job = self._finish(claim, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, progress=1.0)
        self._settle_subject(job, ModelState.READY, DatasetState.READY, summary=summary)
        if files and job.kind == JobKind.INSPECT_MODEL:
            hold(self._session, [file["sha256"] for file in files])
            self._session.execute(update(ModelRow).where(ModelRow.id == job.model_id).values(**contents(files)))

    def fail(self, claim: Claim, error: Json, *, retry: bool, backoff_seconds: float = 0) -> JobState:
        """End the attempt with an error; the job waits for another one when `retry` and it has attempts left."""
        error = {**error, "attempt": claim.attempt}
        job = self._locked(claim)
        if job.cancel_requested:
            self.cancelled(claim)
            return JobState.CANCELLED
        if retry and job.attempts_left > 0:
            self._requeue(claim, AttemptOutcome.FAILED, error=error, backoff_seconds=backoff_seconds)
            return JobState.QUEUED
        self._finish(claim, JobState.FAILED, AttemptOutcome.FAILED, error=error)
        self._settle_subject(job, ModelState.REJECTED, DatasetState.REJECTED, error=error)
        return JobState.FAILED

    def cancelled(self, claim: Claim) -> None:
        """The attempt stopped because the caller asked for it."""
        self._finish(claim, JobState.CANCELLED, AttemptOutcome.CANCELLED)

    def expire(self, claim: Claim, error: Json) -> None:
        """The attempt took longer than the job's time limit."""
        error = {**error, "attempt": claim.attempt}
        job = self._finish(claim, JobState.EXPIRED, AttemptOutcome.EXPIRED, error=error)
        self._settle_subject(job, ModelState.REJECTED, DatasetState.REJECTED, error=error)

    def release(self, claim: Claim) -> None:
        """Give the job back unfinished; this attempt does not count against its limit."""
        if self.cancel_requested_locked(claim):
            self.cancelled(claim)
            return
        self._requeue(claim, AttemptOutcome.RELEASED, error=None, returned_attempts=1)

    def sweep(self) -> set[Queue]:
        """Take jobs from workers whose lease ran out and expire those that waited too long; the queues to wake."""
        lost = self._session.scalars(
            select(JobRow)
            .where(JobRow.state == JobState.RUNNING, JobRow.lease_until < db_now())
            # In one order, since each locks its tenant's usage and two sweeps must not wait for each other.
            .order_by(JobRow.tenant, JobRow.queue)
            .limit(100)
            .with_for_update(skip_locked=True)
        ).all()
        woken: set[Queue] = set()
        for job in lost:
            claim = Claim(job.id, job.attempt, job.owner or "")
            error = {
                "code": "worker_lost",
                "message": f"Worker {claim.owner} stopped renewing its lease on attempt {job.attempt}.",
                "retryable": True,
                "attempt": job.attempt,
                "log_tail": f"Last heard of in phase {job.phase} at {job.progress:.0%}. {job.message}".rstrip(),
            }
            if job.cancel_requested:
                self._finish(claim, JobState.CANCELLED, AttemptOutcome.LOST)
            elif job.attempts_left > 0:
                self._requeue(claim, AttemptOutcome.LOST, error=error)
                woken.add(Queue(job.queue))
            else:
                self._finish(claim, JobState.FAILED, AttemptOutcome.LOST, error=error)
                self._settle_subject(job, ModelState.REJECTED, DatasetState.REJECTED, error=error)
        overdue = self._session.scalars(
            select(JobRow)
            .where(JobRow.state == JobState.QUEUED, _overdue())
            .limit(100)
            .with_for_update(skip_locked=True)
        ).all()
        for job in overdue:
            error = {
                "code": "not_started_in_time",
                "message": "No worker took the job before its deadline for starting.",
                "retryable": True,
                "attempt": job.attempt,
                "log_tail": f"Waited on queue {job.queue} with priority {job.priority}.",
            }
            self._session.execute(
                update(JobRow)
                .where(JobRow.id == job.id)
                .values(state=JobState.EXPIRED, finished_at=db_now(), error=error)
                .execution_options(synchronize_session=False)
            )
            append_event(self._session, job.id, JobState.EXPIRED, {"error": error})
            count(self._session, JOBS_ENDED, job.kind, job.queue, JobState.EXPIRED)
        return woken

    def waiting(self, queue: Queue) -> int:
        """How many jobs on `queue` could be claimed now."""
        return (
            self._session.scalar(
                select(func.count())
                .select_from(JobRow)
                .where(JobRow.queue == queue, JobRow.state == JobState.QUEUED, JobRow.available_at <= db_now())
            )
            or 0
        )

    def cancel_requested_locked(self, claim: Claim) -> bool:
        """Like `cancel_requested`, and no request can come in between until the transaction ends."""
        return self._locked(claim).cancel_requested

    def _locked(self, claim: Claim) -> JobRow:
        row = self._session.scalars(
            select(JobRow)
            .where(JobRow.id == claim.job_id, JobRow.attempt == claim.attempt, JobRow.state == JobState.RUNNING)
            .with_for_update()
            .execution_options(populate_existing=True)
        ).one_or_none()
        if row is None:
            raise _fenced(claim)
        return row

    def _write(self, claim: Claim, **values: object) -> JobRow:
        row = self._session.scalars(
            update(JobRow)
            .where(JobRow.id == claim.job_id, JobRow.attempt == claim.attempt, JobRow.state == JobState.RUNNING)
            .values(**values)
            .returning(JobRow)
            .execution_options(synchronize_session=False, populate_existing=True)
        ).one_or_none()
        if row is None:
            raise _fenced(claim)
        return row

    def _finish(self, claim: Claim, state: JobState, outcome: AttemptOutcome, **values: object) -> JobRow:
        row = self._write(claim, state=state, finished_at=db_now(), owner=None, lease_until=None, **values)
        error = values.get("error")
        self._end_attempt(row, outcome, error)
        count(self._session, JOBS_ENDED, row.kind, row.queue, state)
        append_event(self._session, claim.job_id, state, {"error": error} if error else {})
        return row

    def _requeue(
        self,
        claim: Claim,
        outcome: AttemptOutcome,
        *,
        error: Json | None,
        backoff_seconds: float = 0,
        returned_attempts: int = 0,
    ) -> None:
        row = self._write(
            claim,
            state=JobState.QUEUED,
            owner=None,
            lease_until=None,
            phase="",
            progress=0.0,
            message="",
            available_at=db_now() + backoff_seconds,
            attempts_left=JobRow.attempts_left + returned_attempts,
        )
        self._end_attempt(row, outcome, error)
        append_event(self._session, claim.job_id, JobState.QUEUED, {"after": str(outcome), "error": error})

    def _end_attempt(self, job: JobRow, outcome: AttemptOutcome, error: object) -> None:
        started_at, ended_at = self._session.execute(
            update(AttemptRow)
            .where(AttemptRow.job_id == job.id, AttemptRow.number == job.attempt)
            .values(ended_at=db_now(), outcome=outcome, error=error)
            .returning(AttemptRow.started_at, db_now())
            .execution_options(synchronize_session=False)
        ).one()
        session, effort = self._session, self._effort
        charge(session, tenant=job.tenant, queue=job.queue, started_at=started_at, ended_at=ended_at)
        code = str(error["code"]) if isinstance(error, dict) else ""
        count(session, ATTEMPTS, job.kind, job.queue, outcome, code)
        observe(session, ATTEMPT_SECONDS, job.kind, job.queue, outcome, seconds=ended_at - started_at)
        if effort is not None:
            observe(session, WAIT_SECONDS, job.kind, job.queue, seconds=effort.waited_seconds)
            count(session, INPUT_BYTES, job.queue, by=effort.input_bytes)
            for phase, spent in effort.phases().items():
                observe(session, PHASE_SECONDS, job.kind, phase, seconds=spent)
            for type_, spent in effort.steps:
                observe(session, STEP_SECONDS, type_, seconds=spent)

    def _settle_subject(
        self,
        job: JobRow,
        model_state: ModelState,
        dataset_state: DatasetState,
        *,
        summary: Json | None = None,
        error: Json | None = None,
    ) -> None:
        known = {"summary": summary, "error": error and {"code": error["code"], "message": error["message"]}}
        if job.kind == JobKind.INSPECT_MODEL:
            self._session.execute(
                update(ModelRow).where(ModelRow.id == job.model_id).values(state=model_state, **known)
            )
        elif job.kind == JobKind.INSPECT_DATASET:
            subject = select(JobDatasetRow.dataset_id).where(JobDatasetRow.job_id == job.id).scalar_subquery()
            self._session.execute(
                update(DatasetRow).where(DatasetRow.id == subject).values(state=dataset_state, **known)
            )


def _claimable(queue: Queue) -> tuple[ColumnElement[bool], ...]:
    return (
        JobRow.queue == queue,
        JobRow.state == JobState.QUEUED,
        JobRow.available_at <= db_now(),
        not_(_overdue()),
    )


@cache  # building it takes longer than running it
def _claim(queue: Queue, *, in_turn: bool) -> ReturningUpdate[JobRow]:
    """Takes the most urgent job, of the tenant whose turn it is or of any; parameters `by` and `seconds`."""
    wanted = select(JobRow.id).where(*_claimable(queue))
    if in_turn:
        wanted = wanted.where(JobRow.tenant == _next_tenant(queue))
    next_id = (
        wanted.order_by(JobRow.priority.desc(), JobRow.id).limit(1).with_for_update(skip_locked=True).scalar_subquery()
    )
    return (
        update(JobRow)
        .where(JobRow.id == next_id, JobRow.state == JobState.QUEUED)
        .values(
            state=JobState.RUNNING,
            attempt=JobRow.attempt + 1,
            attempts_left=JobRow.attempts_left - 1,
            owner=bindparam("by"),
            lease_until=db_now() + bindparam("seconds", type_=Double()),
            started_at=func.coalesce(JobRow.started_at, db_now()),
            phase="loading",
            progress=0.0,
            message="",
        )
        .returning(JobRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    )


def _next_tenant(queue: Queue) -> ScalarSelect[str]:
    """Whose turn it is on `queue`: the tenant with the fewest running jobs for its share, and among equals the one that
    had least of the workers' time in the last two hours or three.

    Priorities order a tenant's own jobs: they must not let one tenant pass all others.
    """
    running = (
        select(func.count())
        .where(JobRow.queue == queue, JobRow.state == JobState.RUNNING, JobRow.tenant == TenantRow.id)
        .scalar_subquery()
    )
    # In a select of its own it is computed once, and serves to look into the index.
    since = select(cast(db_now() / HOUR_SECONDS - 2, Integer)).scalar_subquery()
    recent = (
        select(func.coalesce(func.sum(UsageRow.seconds), 0.0))
        .where(UsageRow.tenant == TenantRow.id, UsageRow.queue == queue, UsageRow.hour >= since)
        .scalar_subquery()
    )
    first = (
        select(JobRow.id)
        .where(*_claimable(queue), JobRow.tenant == TenantRow.id)
        .order_by(JobRow.priority.desc(), JobRow.id)
        .limit(1)
        .scalar_subquery()
    )
    return (
        select(TenantRow.id)
        .where(first.is_not(None))
        .order_by(running / TenantRow.share, recent / TenantRow.share, first)
        .limit(1)
        .scalar_subquery()
    )


def _overdue() -> ColumnElement[bool]:
    """Jobs that have not started by their deadline; one that did start and came back to the queue has met it."""
    return and_(JobRow.expires_at.is_not(None), JobRow.expires_at < db_now(), JobRow.started_at.is_(None))


def _fenced(claim: Claim) -> Fenced:
    return Fenced(f"Attempt {claim.attempt} of job {claim.job_id} does not own it any more.")
