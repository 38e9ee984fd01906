"""What can be done with jobs."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial

from sqlalchemy.orm import Session

from api.dependencies import PageRequest, Services
from api.errors import InvalidField, RequestError
from api.jobs.admission import check_data, check_provider, check_student
from api.jobs.schemas import CreateJob, artifact_json, attempt_json, event_json, job_json
from api.webhooks.service import job_webhook
from catalog.datasets.repository import Datasets
from catalog.db import Json, after_commit
from catalog.errors import NotFound
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, JobState, Queue
from catalog.jobs.tables import ArtifactRow, IdempotencyRow, JobRow
from catalog.logs import bound
from catalog.models.repository import Models
from catalog.tenants.usage import Quotas
from catalog.workers.repository import Workers
from compression.spec import PipelineSpec

logger = logging.getLogger(__name__)


class _KeyTaken(Exception):
    """Another submission with the same Idempotency-Key committed first; this one must leave no trace."""


class JobService:
    """Jobs of one process. The inspections that run as jobs of their own are not shown."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._database = services.database
        self._wakeups = services.wakeups

    def submit(self, body: CreateJob, *, key: str | None, request_id: str) -> tuple[Json, bool]:
        """Queue a job and wake a worker; the job, and whether the key had already made it.

        Raises:
            RequestError: The job could not succeed.
            NotFound: The model or a dataset does not exist.
            Conflict: One of them was rejected.
        """
        if key is None:
            with self._database.write() as session:
                return self._add(session, body, request_id, None), False
        body_sha256 = hashlib.sha256(json.dumps(body.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
        try:
            with self._database.write() as session:
                bound = Jobs(session).find_key(key)
                if bound is None:
                    return self._add(session, body, request_id, (key, body_sha256)), False
        except _KeyTaken:
            pass
        with self._database.read() as session:
            bound = Jobs(session).find_key(key)
            if bound is None:
                raise NotFound("The job of this Idempotency-Key was deleted just now.", code="job_not_found")
            return self._replay(session, bound, body_sha256), True

    def _add(self, session: Session, body: CreateJob, request_id: str, binding: tuple[str, str] | None) -> Json:
        spec = PipelineSpec(steps=body.pipeline, benchmark=body.benchmark, seed=body.seed)
        model = Models(session).get_usable(body.model_id)
        check_student(spec, body.student_id)
        if body.student_id is not None:
            Models(session).get_usable(body.student_id)
        ids = body.data.model_dump(exclude_none=True)
        # One order for all, so that two submissions cannot wait for each other's locks.
        rows = {dataset_id: Datasets(session).get_usable(dataset_id) for dataset_id in sorted(set(ids.values()))}
        check_data(spec, model, {role: rows[dataset_id] for role, dataset_id in ids.items()})
        if spec.benchmark.provider != "auto":
            alive = Workers(session).alive(seconds=self._settings.lease_seconds)
            check_provider(spec.benchmark.provider, [worker for worker in alive if worker.queue == body.queue])
        new = NewJob(
            kind=JobKind.COMPRESS,
            queue=Queue(body.queue),
            max_attempts=body.max_attempts or self._settings.max_attempts,
            time_limit_seconds=self._time_limit(body),
            model_id=model.id,
            student_id=body.student_id,
            datasets=ids,
            spec=spec.model_dump(mode="json"),
            name=body.name,
            labels=body.labels,
            priority=body.priority,
            start_within_seconds=body.start_within_seconds,
            request_id=request_id,
            webhook=None if body.webhook is None else job_webhook(body.webhook, self._settings),
        )
        Quotas(session).admit_job()
        jobs = Jobs(session)
        row = jobs.add(new)
        if binding is not None:
            key, body_sha256 = binding
            if jobs.remember_key(key, body_sha256=body_sha256, job_id=row.id) is not None:
                raise _KeyTaken
        after_commit(session, partial(self._wakeups.wake, new.queue))
        after_commit(session, partial(_log_queued, row))
        return job_json(row, ids, ())

    def _replay(self, session: Session, bound: IdempotencyRow, body_sha256: str) -> Json:
        if bound.body_sha256 != body_sha256:
            raise RequestError(
                "idempotency_key_reused", "This Idempotency-Key was sent before with another body; choose a new key."
            )
        return _job(session, _get(session, bound.job_id))

    def _time_limit(self, body: CreateJob) -> float:
        if body.time_limit_seconds is None:
            return self._settings.job_time_limit_seconds
        if body.time_limit_seconds > self._settings.max_job_time_limit_seconds:
            raise InvalidField(
                "/time_limit_seconds",
                f"A job may take {self._settings.max_job_time_limit_seconds:g} s at most.",
                code="less_than_equal",
            )
        return body.time_limit_seconds

    def get(self, job_id: str) -> Json:
        with self._database.read() as session:
            row, datasets = Jobs(session).get_with_datasets(job_id)
            _check_shown(row)
            return _job(session, row, datasets)

    def list(self, page: PageRequest, *, state: JobState | None, model_id: str | None) -> Json:
        with self._database.read() as session:
            jobs = Jobs(session)
            rows = jobs.page(limit=page.limit + 1, before_id=page.before_id, state=state, model_id=model_id)
            ids = [row.id for row in rows]
            datasets, artifacts = jobs.datasets_of(ids), jobs.artifacts_of(ids)
        return page.answer(rows, [job_json(row, datasets[row.id], artifacts[row.id]) for row in rows])

    def cancel(self, job_id: str) -> tuple[Json, bool]:
        """Ask the job to stop; the job, and whether it had ended before."""
        with self._database.write() as session:
            ended = JobState(_get(session, job_id, lock=True).state).terminal
            return _job(session, Jobs(session).request_cancel(job_id)), ended

    def retry(self, job_id: str) -> Json:
        with self._database.write() as session:
            jobs = Jobs(session)
            row = _get(session, job_id, lock=True)
            for model_id in sorted({row.model_id or "", row.student_id or row.model_id or ""}):
                Models(session).get_usable(model_id)
            for dataset_id in sorted(set(jobs.datasets(job_id).values())):
                Datasets(session).get_usable(dataset_id)
            Quotas(session).admit_job()
            row = jobs.retry(job_id)
            after_commit(session, partial(self._wakeups.wake, Queue(row.queue)))
            return _job(session, row)

    def delete(self, job_id: str) -> None:
        with self._database.write() as session:
            _get(session, job_id, lock=True)
            Jobs(session).delete(job_id)

    def attempts(self, job_id: str) -> Json:
        with self._database.read() as session:
            _get(session, job_id)
            items = [attempt_json(row) for row in Jobs(session).attempts(job_id)]
        return {"items": items, "next_cursor": None}

    def artifacts(self, job_id: str) -> Json:
        with self._database.read() as session:
            _get(session, job_id)
            items = [artifact_json(row) for row in Jobs(session).artifacts(job_id)]
        return {"items": items, "next_cursor": None}

    def artifact(self, job_id: str, name: str) -> ArtifactRow:
        with self._database.read() as session:
            _get(session, job_id)
            return Jobs(session).artifact(job_id, name)

    def events(self, job_id: str, *, after: int, limit: int) -> Json:
        with self._database.read() as session:
            newest = _get(session, job_id).last_event
            items = [event_json(row) for row in Jobs(session).events(job_id, after=after, limit=limit)]
        more = bool(items) and items[-1]["seq"] < newest
        return {"items": items, "next_cursor": str(items[-1]["seq"]) if more else None}


def _log_queued(row: JobRow) -> None:
    with bound(job_id=row.id):
        logger.info("job %s is queued on %s", row.id, row.queue)


def _get(session: Session, job_id: str, *, lock: bool = False) -> JobRow:
    row = Jobs(session).get(job_id, lock=lock)
    _check_shown(row)
    return row


def _check_shown(row: JobRow) -> None:
    """Inspections are jobs of their own, which callers see as states of models and datasets."""
    if row.kind != JobKind.COMPRESS:
        raise NotFound(f"There is no job {row.id}.", code="job_not_found")


def _job(session: Session, row: JobRow, datasets: dict[str, str] | None = None) -> Json:
    """The job in full; `datasets` where they are known already."""
    jobs = Jobs(session)
    artifacts = jobs.artifacts(row.id) if row.state == JobState.SUCCEEDED else ()
    return job_json(row, jobs.datasets(row.id) if datasets is None else datasets, artifacts)
