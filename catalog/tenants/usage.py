"""All SQL about what tenants use and may use.

Limits are checked in the transaction that makes what they count, with the tenant's row locked: of two requests that
each fit, but not both, the second is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, func, select, union
from sqlalchemy.orm import Session

from catalog.datasets.tables import DatasetRow
from catalog.db import read_clock, upsert
from catalog.errors import QuotaExceeded
from catalog.jobs.states import JobState, Queue
from catalog.jobs.tables import ArtifactRow, AttemptRow, JobRow
from catalog.models.tables import ModelRow
from catalog.tenancy import tenant_of
from catalog.tenants.tables import TenantRow, UsageRow
from catalog.uploads.states import UploadState
from catalog.uploads.tables import PartRow, UploadRow

HOUR_SECONDS = 3600
USAGE_WINDOW_SECONDS = 30 * 24 * HOUR_SECONDS
"""The time over which workers' time is limited: the thirty days up to now."""
# When a limit may have moved: jobs start in seconds, an hour's use leaves the window once an hour.
_QUEUE_RETRY_SECONDS = 10
# Built once: every submission asks for them.
_LIMITS = select(TenantRow).where(TenantRow.id == bindparam("tenant")).execution_options(populate_existing=True)


@dataclass(frozen=True)
class Usage:
    """What a tenant has and did."""

    bytes: int
    queued_jobs: int
    running_jobs: int
    worker_seconds: dict[Queue, float]
    """In the window up to now, running attempts included."""


class Quotas:
    """Limits of the session's tenant."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tenant = tenant_of(session)

    def limits(self, *, lock: bool = False) -> TenantRow | None:
        """The tenant's row; `lock` lets nobody else count against it until the transaction ends."""
        query = _LIMITS.with_for_update() if lock else _LIMITS
        return self._session.scalars(query, {"tenant": self._tenant}).one_or_none()

    def admit_job(self) -> None:
        """Refuse another job when there are too many, or when what there is to use is used up.

        Raises:
            QuotaExceeded: `too_many_queued_jobs`, `worker_time_used_up` or `storage_used_up`.
        """
        limits = self.limits()
        if limits is None:
            return
        if limits.max_queued_jobs is not None:
            self.limits(lock=True)
            if self._count(JobState.QUEUED) >= limits.max_queued_jobs:
                raise QuotaExceeded(
                    f"{limits.max_queued_jobs} jobs of this tenant wait already; submit more when some have started.",
                    code="too_many_queued_jobs",
                    retry_after_seconds=_QUEUE_RETRY_SECONDS,
                )
        if limits.max_worker_seconds is not None and sum(self._seconds().values()) >= limits.max_worker_seconds:
            raise QuotaExceeded(
                f"The {limits.max_worker_seconds / 60:g} minutes of workers that this tenant has in 30 days are over.",
                code="worker_time_used_up",
                retry_after_seconds=HOUR_SECONDS,
            )
        if limits.max_bytes is not None:
            self.admit_bytes(0)

    def admit_bytes(self, size: int) -> None:
        """Refuse `size` more bytes where they exceed the limit.

        Raises:
            QuotaExceeded: `storage_used_up`.
        """
        limits = self.limits()
        if limits is None or limits.max_bytes is None:
            return
        self.limits(lock=True)
        room = limits.max_bytes - self._bytes()
        if size > room:
            raise storage_used_up(room)

    def room_bytes(self) -> int | None:
        """Bytes that may still come, negative where there are too many already; None without a limit."""
        limits = self.limits()
        return None if limits is None or limits.max_bytes is None else limits.max_bytes - self._bytes()

    def usage(self) -> Usage:
        return Usage(
            bytes=self._bytes(),
            queued_jobs=self._count(JobState.QUEUED),
            running_jobs=self._count(JobState.RUNNING),
            worker_seconds=self._seconds(),
        )

    def _bytes(self) -> int:
        """Files of equal content count once, save for those of models that have several."""
        named = [
            select(UploadRow.sha256, UploadRow.size).where(
                UploadRow.tenant == self._tenant, UploadRow.state == UploadState.COMPLETE
            ),
            select(ModelRow.sha256, ModelRow.size).where(ModelRow.tenant == self._tenant),
            select(DatasetRow.sha256, DatasetRow.size).where(DatasetRow.tenant == self._tenant),
            select(ArtifactRow.sha256, ArtifactRow.size)
            .join(JobRow, JobRow.id == ArtifactRow.job_id)
            .where(JobRow.tenant == self._tenant),
        ]
        files = union(*named).subquery()
        whole = self._session.scalar(select(func.coalesce(func.sum(files.c.size), 0)))
        parts = self._session.scalar(
            select(func.coalesce(func.sum(PartRow.size), 0))
            .join(UploadRow, UploadRow.id == PartRow.upload_id)
            .where(UploadRow.tenant == self._tenant)
        )
        return int(whole or 0) + int(parts or 0)

    def _count(self, state: JobState) -> int:
        return (
            self._session.scalar(
                select(func.count())
                .select_from(JobRow)
                # Named, so that the index over queue, state and tenant serves.
                .where(JobRow.queue.in_(list(Queue)), JobRow.state == state, JobRow.tenant == self._tenant)
            )
            or 0
        )

    def _seconds(self) -> dict[Queue, float]:
        now = read_clock(self._session)
        found = dict.fromkeys(Queue, 0.0)
        ended = self._session.execute(
            select(UsageRow.queue, func.sum(UsageRow.seconds))
            .where(UsageRow.tenant == self._tenant, UsageRow.hour > (now - USAGE_WINDOW_SECONDS) // HOUR_SECONDS)
            .group_by(UsageRow.queue)
        )
        running = self._session.execute(
            select(JobRow.queue, func.sum(now - AttemptRow.started_at))
            .join(AttemptRow, (AttemptRow.job_id == JobRow.id) & (AttemptRow.number == JobRow.attempt))
            .where(JobRow.queue.in_(list(Queue)), JobRow.state == JobState.RUNNING, JobRow.tenant == self._tenant)
            .group_by(JobRow.queue)
        )
        for queue, seconds in (*ended, *running):
            found[Queue(queue)] += float(seconds)
        return found


def storage_used_up(room: int) -> QuotaExceeded:
    """What to raise where only `room` more bytes may come, and more want to."""
    return QuotaExceeded(
        f"This tenant may keep {max(room, 0)} bytes more; delete uploads, models, datasets or jobs.",
        code="storage_used_up",
    )


def charge(session: Session, *, tenant: str, queue: str, started_at: float, ended_at: float) -> None:
    """Write down what an attempt took."""
    row = upsert(session, UsageRow).values(
        tenant=tenant,
        hour=int(ended_at // HOUR_SECONDS),
        queue=queue,
        seconds=max(0.0, ended_at - started_at),
        attempts=1,
    )
    session.execute(
        row.on_conflict_do_update(
            index_elements=[UsageRow.tenant, UsageRow.hour, UsageRow.queue],
            set_={
                "seconds": UsageRow.seconds + row.excluded.seconds,
                "attempts": UsageRow.attempts + row.excluded.attempts,
            },
        )
    )
