"""What is counted in the database: what workers do, and whatever must survive the process that did it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Counter:
    """A number that only grows, one for each combination of labels.

    Attributes:
        name: In Prometheus.
        help: What it counts, with its unit.
        labels: Their names.
        at_most: Combinations that are told apart; the last label of later ones becomes `other`. For labels whose
            values come from a job's process, which is not trusted. 0 means that there can only be so many.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    at_most: int = 0


@dataclass(frozen=True)
class Histogram:
    """How often something took how long, in seconds; the last bucket is without bound."""

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]

    def bucket_of(self, value: float) -> float:
        """Upper bound of the bucket that `value` falls into."""
        return next((bound for bound in self.buckets if value <= bound), math.inf)


_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0, 10800.0, 43200.0)

ATTEMPTS = Counter(
    "levity_attempts_total",
    "Attempts that ended, by how; the code is the error's, and empty without one.",
    ("kind", "queue", "outcome", "code"),
    at_most=500,
)
JOBS_ENDED = Counter("levity_jobs_ended_total", "Jobs that ended, by state.", ("kind", "queue", "state"))
ARTIFACT_BYTES = Counter("levity_artifact_bytes_total", "Bytes of files that jobs published.", ("queue",))
INPUT_BYTES = Counter("levity_input_bytes_total", "Bytes of models and datasets given to jobs.", ("queue",))
WEBHOOK_ATTEMPTS = Counter(
    "levity_webhook_attempts_total", "Attempts at deliveries, by `delivered` or the error's code.", ("outcome",)
)
COLLECTED_BLOBS = Counter(
    "levity_collected_blobs_total", "Copies of blobs that were removed, for nothing named them.", ()
)
COLLECTED_BYTES = Counter("levity_collected_bytes_total", "Bytes of copies of blobs that were removed.", ())
FORGOTTEN = Counter("levity_forgotten_total", "Rows that were deleted for their age, by what they were.", ("what",))
WAIT_SECONDS = Histogram(
    "levity_job_wait_seconds", "Time from when a job could be claimed to its claim.", ("kind", "queue"), _SECONDS
)
ATTEMPT_SECONDS = Histogram(
    "levity_attempt_seconds", "Time from an attempt's claim to its end.", ("kind", "queue", "outcome"), _SECONDS
)
PHASE_SECONDS = Histogram("levity_phase_seconds", "Time that attempts spent in a phase.", ("kind", "phase"), _SECONDS)
STEP_SECONDS = Histogram("levity_step_seconds", "Time that steps took, in jobs that succeeded.", ("type",), _SECONDS)

COUNTERS = (
    ATTEMPTS,
    JOBS_ENDED,
    ARTIFACT_BYTES,
    INPUT_BYTES,
    WEBHOOK_ATTEMPTS,
    COLLECTED_BLOBS,
    COLLECTED_BYTES,
    FORGOTTEN,
)
HISTOGRAMS = (WAIT_SECONDS, ATTEMPT_SECONDS, PHASE_SECONDS, STEP_SECONDS)
