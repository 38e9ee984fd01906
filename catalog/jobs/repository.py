"""All SQL about jobs: submitting, listing, and what a caller may do to one. What workers do is in `leases`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from sqlalchemy import bindparam, delete, func, insert, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from catalog.audit.repository import note
from catalog.db import Base, Json, db_now, newest_first
from catalog.errors import Conflict, NotFound
from catalog.ids import new_id
from catalog.jobs.states import TERMINAL, TRANSITIONS, JobKind, JobState, Queue
from catalog.jobs.tables import (
    ArtifactRow,
    AttemptRow,
    EventRow,
    IdempotencyRow,
    JobDatasetRow,
    JobRow,
)
from catalog.tenancy import tenant_of
from catalog.totals.metrics import JOBS_ENDED
from catalog.totals.repository import count
from catalog.tracing import traceparent
from catalog.webhooks.outbox import JobFacts, tell_of_job
from catalog.webhooks.repository import NewWebhook, Webhooks
from catalog.webhooks.states import EVENT_OF_STATE

# Built once: they are asked for by everybody who polls, and building a statement costs as much as running it.
_BY_ID = select(JobRow).where(JobRow.id == bindparam("job_id")).execution_options(populate_existing=True)
# What webhooks are told of a job.
_TOLD = tuple(getattr(JobRow, entry.name) for entry in fields(JobFacts))
_WITH_DATASETS = (
    select(JobRow, JobDatasetRow.role, JobDatasetRow.dataset_id)
    .outerjoin(JobDatasetRow, JobDatasetRow.job_id == JobRow.id)
    .where(JobRow.id == bindparam("job_id"))
)
_NEW_EVENT = insert(Base.metadata.tables[EventRow.__tablename__])  # an entity would be looked for in the session
_DATASETS_OF = select(JobDatasetRow.role, JobDatasetRow.dataset_id).where(JobDatasetRow.job_id == bindparam("job_id"))


@dataclass(frozen=True)
class NewJob:
    """What a submission fixes."""

    kind: JobKind
    queue: Queue
    max_attempts: int
    time_limit_seconds: float
    model_id: str | None = None
    student_id: str | None = None
    datasets: Mapping[str, str] = field(default_factory=dict)
    """Dataset ids by role."""
    spec: Json = field(default_factory=dict)
    name: str = ""
    labels: Json = field(default_factory=dict)
    priority: int = 0
    start_within_seconds: float | None = None
    request_id: str = ""
    webhook: NewWebhook | None = None
    """Hears of this job alone."""


@dataclass(frozen=True)
class Unfinished:
    """Jobs of one kind on one queue in one state."""

    kind: str
    queue: str
    state: JobState
    number: int
    oldest_seconds: float
    """For how long the first of them could have been claimed."""


class Jobs:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, new: NewJob) -> JobRow:
        wait = new.start_within_seconds
        row = JobRow(
            id=new_id("job"),
            kind=new.kind,
            name=new.name,
            labels=new.labels,
            model_id=new.model_id,
            student_id=new.student_id,
            spec=new.spec,
            queue=new.queue,
            priority=new.priority,
            state=JobState.QUEUED,
            attempts_left=new.max_attempts,
            max_attempts=new.max_attempts,
            time_limit_seconds=new.time_limit_seconds,
            expires_at=None if wait is None else db_now() + wait,
            last_event=1,
            request_id=new.request_id,
            traceparent=traceparent(),
        )
        self._session.add(row)
        self._session.flush()
        for role, dataset_id in new.datasets.items():
            self._session.add(JobDatasetRow(job_id=row.id, role=role, dataset_id=dataset_id))
        if new.webhook is not None:
            Webhooks(self._session).add(new.webhook, job_id=row.id)
        _record(self._session, row.id, 1, at=row.created_at, type_=JobState.QUEUED, attempt=0, data={})
        if new.kind == JobKind.COMPRESS:
            note(self._session, "job.created", row.id)
            tell_of_job(self._session, _facts(row), now=row.created_at)
        return row

    def remember_key(self, key: str, *, body_sha256: str, job_id: str) -> IdempotencyRow | None:
        """Bind an Idempotency-Key to a job just added; the earlier binding when there is one, else None."""
        try:
            with self._session.begin_nested():
                self._session.add(
                    IdempotencyRow(
                        tenant=tenant_of(self._session),
                        key=key,
                        body_sha256=body_sha256,
                        job_id=job_id,
                        created_at=db_now(),
                    )
                )
        except IntegrityError:
            return self.find_key(key)
        return None

    def find_key(self, key: str) -> IdempotencyRow | None:
        return self._session.get(IdempotencyRow, (tenant_of(self._session), key))

    def get(self, job_id: str, *, lock: bool = False) -> JobRow:
        """The job; `lock` keeps others from changing it until the transaction ends."""
        query = _BY_ID.with_for_update() if lock else _BY_ID
        row = self._session.scalars(query, {"job_id": job_id}).one_or_none()
        if row is None:
            raise NotFound(f"There is no job {job_id}.", code="job_not_found")
        return row

    def get_with_datasets(self, job_id: str) -> tuple[JobRow, dict[str, str]]:
        """The job and its datasets' ids by role, in one query."""
        found = self._session.execute(_WITH_DATASETS, {"job_id": job_id}).all()
        if not found:
            raise NotFound(f"There is no job {job_id}.", code="job_not_found")
        return found[0][0], {role: dataset_id for _, role, dataset_id in found if role is not None}

    def page(
        self,
        *,
        limit: int,
        before_id: str | None = None,
        state: JobState | None = None,
        model_id: str | None = None,
        kind: JobKind = JobKind.COMPRESS,
    ) -> Sequence[JobRow]:
        """Newest first, those older than `before_id`."""
        query = newest_first(select(JobRow).where(JobRow.kind == kind), JobRow.id, limit=limit, before_id=before_id)
        if state is not None:
            query = query.where(JobRow.state == state)
        if model_id is not None:
            query = query.where(JobRow.model_id == model_id)
        return self._session.scalars(query).all()

    def datasets(self, job_id: str) -> dict[str, str]:
        """Dataset ids by role."""
        return dict(self._session.execute(_DATASETS_OF, {"job_id": job_id}).all())

    def datasets_of(self, job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Dataset ids by role, for several jobs in one query."""
        found: dict[str, dict[str, str]] = {job_id: {} for job_id in job_ids}
        for row in self._session.scalars(select(JobDatasetRow).where(JobDatasetRow.job_id.in_(job_ids))):
            found[row.job_id][row.role] = row.dataset_id
        return found

    def attempts(self, job_id: str) -> Sequence[AttemptRow]:
        return self._session.scalars(
            select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
        ).all()

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[EventRow]:
        """Events with a sequence number above `after`, oldest first."""
        return self._session.scalars(
            select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > after).order_by(EventRow.seq).limit(limit)
        ).all()

    def position(self, job_id: str) -> tuple[str, int]:
        """State of a compression job and number of its newest event: what readers of events ask all the time."""
        found = self._session.execute(
            select(JobRow.state, JobRow.last_event).where(JobRow.id == job_id, JobRow.kind == JobKind.COMPRESS)
        ).one_or_none()
        if found is None:
            raise NotFound(f"There is no job {job_id}.", code="job_not_found")
        return found.state, found.last_event

    def artifacts(self, job_id: str) -> Sequence[ArtifactRow]:
        return self._session.scalars(
            select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)
        ).all()

    def artifacts_of(self, job_ids: Sequence[str]) -> dict[str, list[ArtifactRow]]:
        """Artifacts of several jobs in one query."""
        found: dict[str, list[ArtifactRow]] = {job_id: [] for job_id in job_ids}
        rows = self._session.scalars(
            select(ArtifactRow).where(ArtifactRow.job_id.in_(job_ids)).order_by(ArtifactRow.name)
        )
        for row in rows:
            found[row.job_id].append(row)
        return found

    def artifact(self, job_id: str, name: str) -> ArtifactRow:
        row = self._session.get(ArtifactRow, (job_id, name))
        if row is None:
            raise NotFound(f"Job {job_id} has no artifact of this name.", code="artifact_not_found")
        return row

    def request_cancel(self, job_id: str) -> JobRow:
        """End a queued job at once; ask the worker of a running one to stop. Terminal jobs stay as they are."""
        row = self.get(job_id, lock=True)
        if not JobState(row.state).terminal:
            note(self._session, "job.cancelled", job_id)
        if row.state == JobState.QUEUED:
            self._move(row, JobState.CANCELLED, finished_at=db_now(), cancel_requested=True)
            count(self._session, JOBS_ENDED, row.kind, row.queue, JobState.CANCELLED)
        elif row.state == JobState.RUNNING and not row.cancel_requested:
            self._session.execute(update(JobRow).where(JobRow.id == job_id).values(cancel_requested=True))
            append_event(self._session, job_id, "cancel_requested", {})
        self._session.refresh(row)
        return row

    def retry(self, job_id: str) -> JobRow:
        """Queue a job again that failed, was cancelled or expired, with a fresh number of attempts."""
        row = self.get(job_id, lock=True)
        note(self._session, "job.retried", job_id)
        if JobState.QUEUED not in TRANSITIONS[JobState(row.state)] or row.state == JobState.RUNNING:
            raise Conflict(
                f"Job {job_id} is {row.state}; only failed, cancelled and expired jobs can be retried.",
                code="job_not_retryable",
            )
        self._move(
            row,
            JobState.QUEUED,
            attempts_left=row.max_attempts,
            available_at=db_now(),
            expires_at=None,
            cancel_requested=False,
            error=None,
            phase="",
            progress=0.0,
            message="",
            started_at=None,
            finished_at=None,
            # What follows belongs to this request.
            traceparent=traceparent() or row.traceparent,
        )
        self._session.refresh(row)
        return row

    def delete(self, job_id: str) -> None:
        """Forget a terminal job, its events and its artifacts."""
        row = self.get(job_id, lock=True)
        if not JobState(row.state).terminal:
            raise Conflict(f"Job {job_id} is {row.state}; cancel it before deleting it.", code="job_not_finished")
        self._session.execute(delete(JobRow).where(JobRow.id == job_id))
        note(self._session, "job.deleted", job_id)

    def active_using(self, *, model_id: str | None = None, dataset_id: str | None = None) -> Sequence[str]:
        """Ids of compression jobs, not terminal yet, that use this model or dataset."""
        query = select(JobRow.id).where(JobRow.kind == JobKind.COMPRESS, JobRow.state.not_in(TERMINAL))
        if model_id is not None:
            query = query.where(or_(JobRow.model_id == model_id, JobRow.student_id == model_id))
        if dataset_id is not None:
            query = query.join(JobDatasetRow).where(JobDatasetRow.dataset_id == dataset_id)
        return self._session.scalars(query.order_by(JobRow.id).limit(10)).all()

    def unfinished(self) -> Sequence[Unfinished]:
        """Jobs that have not ended, counted; cheap however many have."""
        rows = self._session.execute(
            select(
                JobRow.kind,
                JobRow.queue,
                JobRow.state,
                func.count(),
                func.min(JobRow.available_at),
                db_now(),
            )
            # As it stands in the index's condition, which a parameter would hide from the database.
            .where(text("state IN ('queued', 'running')"))
            .group_by(JobRow.state, JobRow.queue, JobRow.kind)
        )
        return [
            Unfinished(kind, queue, JobState(state), number, max(0.0, now - oldest))
            for kind, queue, state, number, oldest, now in rows
        ]

    def overdue_leases(self) -> int:
        """Running jobs whose lease ran out, and which nobody has taken from their worker yet."""
        return (
            self._session.scalar(
                select(func.count())
                .select_from(JobRow)
                .where(JobRow.state == JobState.RUNNING, JobRow.lease_until < db_now())
            )
            or 0
        )

    def _move(self, row: JobRow, to: JobState, **values: object) -> None:
        if to not in TRANSITIONS[JobState(row.state)]:
            raise Conflict(f"Job {row.id} is {row.state} and cannot become {to}.")
        self._session.execute(update(JobRow).where(JobRow.id == row.id).values(state=to, **values))
        append_event(self._session, row.id, to, {})


def append_event(session: Session, job_id: str, type_: str, data: Json) -> int:
    """Record an event in the running transaction and return its sequence number.

    A change of a compression job's state goes into the webhooks' outbox too.
    """
    job = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id)
        .values(last_event=JobRow.last_event + 1)
        .returning(*_TOLD, JobRow.kind, JobRow.last_event, db_now().label("now"))
        .execution_options(synchronize_session=False)
    ).one()
    _record(session, job_id, job.last_event, at=job.now, type_=type_, attempt=job.attempt, data=data)
    if job.kind == JobKind.COMPRESS and type_ in EVENT_OF_STATE:
        tell_of_job(session, _facts(job), now=job.now)
    return int(job.last_event)


def _record(session: Session, job_id: str, seq: int, *, at: float, type_: str, attempt: int, data: Json) -> None:
    row = {"job_id": job_id, "seq": seq, "at": at, "type": str(type_), "attempt": attempt, "data": data}
    session.execute(_NEW_EVENT, row)


def _facts(job: object) -> JobFacts:
    """What webhooks are told of a job: `job` has its columns."""
    return JobFacts(**{column.key: getattr(job, column.key) for column in _TOLD})
