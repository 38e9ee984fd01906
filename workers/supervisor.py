"""One claimed job from start to end: its files, its child, its events, its result."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import assert_never

from catalog import tracing
from catalog.blobs import Blobs
from catalog.broker import Wakeups
from catalog.db import Database
from catalog.errors import BytesGone, DigestMismatch, Fenced, StoreFull, StoreUnavailable
from catalog.jobs.leases import Claim, NewArtifact
from catalog.jobs.states import JobKind, JobState, Queue
from catalog.jobs.step_cache import FinishedSteps
from catalog.jobs.tables import JobRow
from catalog.logs import bound
from catalog.settings import Settings
from compression.cache import checkpoint_key
from compression.result import ArtifactFile, PipelineResult
from compression.signature import DatasetSummary, ModelSummary
from workers.alarm import Alarm
from workers.children import Child, Children
from workers.devices import Device
from workers.failures import JobFailed, of_dead_child
from workers.files import UnsafeFile
from workers.inputs import Inputs, find_inputs, lay_out, lay_out_finished_steps
from workers.lease import CancelRequested, Drain, Lease, TimeLimitReached, WorkerDrains
from workers.log_tail import tidied
from workers.progress import ProgressRelay
from workers.protocol import (
    Answer,
    Compressed,
    DatasetInspected,
    Failed,
    ModelInspected,
    Progressed,
    ProtocolViolation,
    SpanBegun,
    SpanEnded,
    StepFinished,
)
from workers.publishing import store_artifacts, store_step
from workers.spans import ChildSpans

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_SECONDS = 1.0
_MAX_BACKOFF_SECONDS = 60.0
_NOTHING_SAID = "The job's process has said nothing; the worker's log has what there is about this attempt."


class Supervisor:
    """Runs claimed jobs of one queue, each in a child of its own.

    Args:
        memory_limit: Address space of the children, in bytes, for messages; None when unlimited.
        threads: Threads that a job may compute with; 0 lets the runtime choose.
        alarm: Set for the time when a job that failed can be claimed again.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        blobs: Blobs,
        children: Children,
        wakeups: Wakeups,
        drain: Drain,
        queue: Queue,
        memory_limit: int | None,
        threads: int,
        alarm: Alarm,
    ) -> None:
        self._settings = settings
        self._database = database
        self._blobs = blobs
        self._children = children
        self._wakeups = wakeups
        self._drain = drain
        self._queue = queue
        self._memory_limit = memory_limit
        self._threads = threads
        self._alarm = alarm

    def run(self, claim: Claim, job: JobRow) -> None:
        """Work on the job until its attempt has ended one way or another. Raises nothing that the job causes."""
        about: dict[str, str | int] = {"job_id": claim.job_id, "attempt": claim.attempt, "tenant": claim.tenant}
        parent = job.traceparent
        tracing.note_wait(f"wait {job.queue}", parent=parent, seconds=self._waited(job), **about)
        with (
            bound(request_id=job.request_id, **about),
            tracing.span(f"attempt {job.kind}", parent=parent, kind="consumer", queue=job.queue, **about),
        ):
            self._run(claim, job)

    def _run(self, claim: Claim, job: JobRow) -> None:
        started = time.monotonic()
        logger.info("job %s (%s) attempt %d starts", claim.job_id, job.kind, claim.attempt)
        lease = Lease(
            self._database,
            claim,
            self._settings,
            self._drain,
            time_limit_seconds=job.time_limit_seconds,
            waited_seconds=self._waited(job),
        )
        try:
            with lease:
                end = self._end_of(lease, job)
        except Fenced as error:
            logger.warning("job %s attempt %d dropped: %s", claim.job_id, claim.attempt, error)
            tracing.current().fail("lease_lost")
            return
        logger.info("job %s attempt %d: %s after %.2f s", claim.job_id, claim.attempt, end, time.monotonic() - started)

    def _waited(self, job: JobRow) -> float:
        """Seconds from when the job could be claimed to its claim, both by the database's clock."""
        return max(0.0, (job.lease_until or 0.0) - self._settings.lease_seconds - job.available_at)

    def _end_of(self, lease: Lease, job: JobRow) -> str:
        """Work on the job, and write down how that ended."""
        try:
            return self._work(lease, job)
        except Fenced:
            raise
        except (CancelRequested, TimeLimitReached, WorkerDrains) as stop:
            return self._stop(lease, job, stop)
        except JobFailed as error:
            failure = error
        except (StoreFull, StoreUnavailable, BytesGone) as error:
            failure = JobFailed(error.code, error.message, retryable=True)
        except Exception as error:
            logger.exception("job %s attempt %d: the worker failed", job.id, lease.claim.attempt)
            message = tidied(f"{type(error).__name__}: {error}", self._children.path_names)
            failure = JobFailed("worker_error", message[:1000], retryable=True)
        failure.log_tail = failure.log_tail or lease.log_tail or _NOTHING_SAID
        return self._fail(lease, failure)

    def _stop(self, lease: Lease, job: JobRow, stop: CancelRequested | TimeLimitReached | WorkerDrains) -> str:
        claim = lease.claim
        match stop:
            case CancelRequested():
                lease.write(lambda leases: leases.cancelled(claim))
                tracing.current().note(outcome=JobState.CANCELLED)
                return JobState.CANCELLED
            case TimeLimitReached():
                error = JobFailed(
                    "time_limit_exceeded",
                    f"The job took longer than its time limit of {job.time_limit_seconds:g} s.",
                    retryable=True,
                    log_tail=lease.log_tail or _NOTHING_SAID,
                )
                lease.write(lambda leases: leases.expire(claim, error.as_json()))
                tracing.current().fail(error.code)
                return JobState.EXPIRED
            case WorkerDrains():
                lease.write(lambda leases: leases.release(claim))
                tracing.current().note(outcome="released")
                self._wakeups.wake(self._queue)
                return "given back"
        assert_never(stop)

    def _fail(self, lease: Lease, error: JobFailed) -> str:
        backoff = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (lease.claim.attempt - 1))
        state = lease.write(
            lambda leases: leases.fail(lease.claim, error.as_json(), retry=error.retryable, backoff_seconds=backoff)
        )
        tracing.current().fail(error.code)
        if state is JobState.QUEUED:
            self._alarm.ring_in(backoff)
        return f"{state} ({error.code})"

    def _work(self, lease: Lease, job: JobRow) -> str:
        inputs = lease.patiently(lambda: find_inputs(self._database, job))
        lease.effort.input_bytes = inputs.size
        child = self._children.take()
        try:
            with tracing.span("prepare", input_bytes=inputs.size):
                request = lease.patiently(lambda: lay_out(job, inputs, self._blobs, child.folder, lease.check))
                finished = lease.patiently(
                    lambda: lay_out_finished_steps(inputs, self._database, self._blobs, child.folder, lease.check)
                )
            surroundings = {
                "device": "cuda" if self._queue is Queue.GPU else "cpu",
                "gpu": _name(child.device),
                "threads": self._threads,
                "held_bytes": self._settings.held_model_bytes,
                "traced": tracing.active(),
            }
            with tracing.span("child", pid=child.pid) as span:
                spans = ChildSpans(span)
                child.begin(request.model_copy(update=surroundings))
                try:
                    answer = self._listen(lease, child, inputs, finished, spans)
                except (CancelRequested, TimeLimitReached, WorkerDrains):
                    child.terminate(self._settings.grace_seconds)
                    raise
                except ProtocolViolation as error:
                    raise self._misbehaved(child, str(error)) from error
                finally:
                    spans.close()
            child.kill()
            self._children.prepare()
            with tracing.span("publish"):
                return self._publish(lease, child, answer, job, inputs)
        finally:
            self._children.dismiss(child)
            lease.log_tail = child.log_tail
            self._children.prepare()

    def _listen(self, lease: Lease, child: Child, inputs: Inputs, finished: int, spans: ChildSpans) -> Answer:
        """Pass on what the child says until it answers."""
        relay = ProgressRelay(lease)
        stored: set[str] = set()
        for index in range(finished):
            stored.add(inputs.keys[index])
            self._note_step(lease, inputs, index, cached=True)
        while True:
            lease.check()
            for event in child.listen(relay.seconds_until_due(lease.seconds_until_check()), wake=lease.wake):
                match event:
                    case Progressed():
                        lease.effort.enter(event.phase)
                        relay.update(event)
                    case StepFinished():
                        self._keep(lease, child, inputs, event, stored)
                    case SpanBegun() | SpanEnded():
                        spans.hear(event)
                    case Compressed() | ModelInspected() | DatasetInspected():
                        return event
                    case Failed():
                        message = tidied(event.message, child.path_names)
                        raise JobFailed(event.code, message, event.retryable, child.log_tail)
                    case _:
                        assert_never(event)
            relay.flush_when_due()
            if child.ended:
                child.kill()
                raise of_dead_child(
                    child.returncode or 0, child.log_tail, self._memory_limit, gpu_name=_name(child.device)
                )

    def _keep(self, lease: Lease, child: Child, inputs: Inputs, event: StepFinished, stored: set[str]) -> None:
        """Store a step once, and a checkpoint as often as it comes; what belongs to another job is left alone."""
        if event.key in inputs.keys and event.key not in stored:
            stored.add(event.key)
            self._keep_files(lease, child, inputs, event, "finished step", obsolete=checkpoint_key(event.key))
            self._note_step(lease, inputs, list(inputs.keys).index(event.key), cached=False)
        elif event.key in {checkpoint_key(key) for key in inputs.keys}:
            # The bytes of the one before are left to the collector: they may be those of somebody's model.
            self._keep_files(lease, child, inputs, event, "checkpoint")

    def _keep_files(
        self,
        lease: Lease,
        child: Child,
        inputs: Inputs,
        event: StepFinished,
        what: str,
        *,
        obsolete: str | None = None,
    ) -> None:
        """Store what a step left, so that another attempt or a similar job need not do it again.

        Args:
            lease: Of the job.
            child: Where the files are.
            inputs: What they were made from.
            event: Names them, and the key under which they are kept.
            what: A word for it, in the log.
            obsolete: A key that is forgotten once they are kept.
        """
        try:
            room = self._settings.min_free_bytes
            files = lease.patiently(
                lambda: store_step(child.folder, event.folder, self._blobs, min_free_bytes=room), store_seconds=0
            )
        except (UnsafeFile, StoreFull, StoreUnavailable, OSError) as error:
            # The job itself can go on without the cache.
            logger.warning("job %s: a %s was not kept: %s", lease.claim.job_id, what, error)
            return

        model_sha256 = None if inputs.model is None else inputs.model.sha256

        def remember() -> None:
            with self._database.write() as session:
                finished = FinishedSteps(session, lease.claim.tenant)
                finished.put(event.key, files, model_sha256=model_sha256)
                if obsolete is not None:
                    finished.drop(obsolete)

        try:
            lease.patiently(remember)
        except BytesGone as error:
            logger.warning("job %s: a %s was not kept: %s", lease.claim.job_id, what, error)

    def _note_step(self, lease: Lease, inputs: Inputs, index: int, *, cached: bool) -> None:
        if inputs.spec is not None:
            data = {"index": index, "type": inputs.spec.steps[index].type, "cached": cached}
            lease.write(lambda leases: leases.note(lease.claim, "step", data))

    def _publish(self, lease: Lease, child: Child, answer: Answer, job: JobRow, inputs: Inputs) -> str:
        claim = lease.claim
        match answer, job.kind:
            case Compressed(result=result), JobKind.COMPRESS:
                lease.effort.enter("publishing")
                self._measure_steps(lease, inputs, result)
                lease.write(lambda leases: leases.progress(claim, phase="publishing", fraction=1.0, message=""))
                artifacts = self._store(lease, child, result.artifacts)
                document = result.model_dump(mode="json")
                return lease.write(lambda leases: leases.publish(claim, artifacts=artifacts, result=document))
            case ModelInspected(summary=summary, files=files), JobKind.INSPECT_MODEL:
                if not inputs.may_be_made([file.name for file in files]):
                    raise self._misbehaved(child, "files that this inspection does not make")
                made = self._store(lease, child, files)
                return self._publish_summary(lease, summary, made)
            case DatasetInspected(summary=summary), JobKind.INSPECT_DATASET:
                return self._publish_summary(lease, summary)
            case _:
                raise self._misbehaved(child, f"an answer of type {answer.type} to a job of kind {job.kind}")

    def _measure_steps(self, lease: Lease, inputs: Inputs, result: PipelineResult) -> None:
        steps = () if inputs.spec is None else inputs.spec.steps
        for step, done in zip(steps, result.steps, strict=False):
            if not done.cached and math.isfinite(done.seconds):
                lease.effort.note_step(step.type, done.seconds)

    def _store(self, lease: Lease, child: Child, files: Sequence[ArtifactFile]) -> list[NewArtifact]:
        try:
            room = self._settings.min_free_bytes
            return lease.patiently(
                lambda: store_artifacts(files, child.folder, self._blobs, min_free_bytes=room, between=lease.check)
            )
        except (UnsafeFile, DigestMismatch) as error:
            raise self._misbehaved(child, str(error)) from error

    def _publish_summary(
        self, lease: Lease, summary: ModelSummary | DatasetSummary, made: Sequence[NewArtifact] = ()
    ) -> str:
        document = summary.model_dump(mode="json")
        files = [{"name": file.name, "sha256": file.sha256, "size": file.size} for file in made]
        lease.write(lambda leases: leases.publish_inspection(lease.claim, summary=document, files=files))
        return JobState.SUCCEEDED

    def _misbehaved(self, child: Child, what: str) -> JobFailed:
        return JobFailed(
            "child_misbehaved",
            f"The job's process answered with something that is not accepted: {what}",
            log_tail=child.log_tail,
        )


def _name(device: Device | None) -> str:
    return "" if device is None else str(device)
