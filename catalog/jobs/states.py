"""States of a job and how it moves between them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """A time limit ended it: its own while running, or the deadline for starting while queued."""

    @property
    def terminal(self) -> bool:
        """True when nothing but an explicit retry changes it any more."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED}),
    # Back to queued: the worker was lost or is shutting down, or the attempt failed in a way worth another try.
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
    ),
    JobState.SUCCEEDED: frozenset(),
    # Back to queued: the caller asked for a retry.
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
    JobState.EXPIRED: frozenset({JobState.QUEUED}),
}

TERMINAL = tuple(state for state in JobState if state.terminal)


class JobKind(StrEnum):
    COMPRESS = "compress"
    INSPECT_MODEL = "inspect_model"
    INSPECT_DATASET = "inspect_dataset"


class Queue(StrEnum):
    CPU = "cpu"
    GPU = "gpu"
    IO = "io"
    """Short work that must not wait behind compression: inspections, webhooks."""


class AttemptOutcome(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"
    """The lease ran out."""
    RELEASED = "released"
    """A worker that was shutting down gave the job back."""
