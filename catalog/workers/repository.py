"""All SQL about workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from catalog.db import Json, db_now
from catalog.jobs.states import Queue
from catalog.workers.tables import WorkerRow


@dataclass(frozen=True)
class Seen:
    """When a worker was last heard of."""

    id: str
    queue: str
    concurrency: int
    seconds_ago: float


class Workers:
    def __init__(self, session: Session) -> None:
        self._session = session

    def register(self, worker_id: str, *, host: str, queue: Queue, concurrency: int, capabilities: Json) -> None:
        now = db_now()
        self._session.merge(
            WorkerRow(
                id=worker_id,
                host=host,
                queue=queue,
                concurrency=concurrency,
                capabilities=capabilities,
                started_at=now,
                seen_at=now,
            )
        )

    def seen(self, worker_id: str) -> bool:
        """Note that the worker is alive; False when it was forgotten, and must register again."""
        known = self._session.scalar(
            update(WorkerRow).where(WorkerRow.id == worker_id).values(seen_at=db_now()).returning(WorkerRow.id)
        )
        return known is not None

    def forget(self, worker_id: str) -> None:
        self._session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))

    def forget_silent(self, *, seconds: float) -> None:
        """Remove workers that have not been seen for so long."""
        self._session.execute(delete(WorkerRow).where(WorkerRow.seen_at < db_now() - seconds))

    def alive(self, *, seconds: float) -> Sequence[WorkerRow]:
        """Workers seen within so many seconds."""
        return self._session.scalars(
            select(WorkerRow).where(WorkerRow.seen_at >= db_now() - seconds).order_by(WorkerRow.id)
        ).all()

    def seen_seconds_ago(self) -> list[Seen]:
        """All workers that are known, also those that have fallen silent."""
        rows = self._session.execute(
            select(WorkerRow.id, WorkerRow.queue, WorkerRow.concurrency, db_now() - WorkerRow.seen_at).order_by(
                WorkerRow.id
            )
        )
        return [Seen(id_, queue, concurrency, max(0.0, ago)) for id_, queue, concurrency, ago in rows]
