"""What webhooks tell of, and how a delivery moves between its states."""

from __future__ import annotations

from enum import StrEnum

from catalog.jobs.states import JobState


class EventType(StrEnum):
    JOB_QUEUED = "job.queued"
    """Also when an attempt was lost or is tried again, and when the job is retried."""
    JOB_STARTED = "job.started"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"


PING = "webhook.ping"
"""The type of test events, which every endpoint gets that asks for one."""

EVENT_OF_STATE: dict[str, EventType] = {
    JobState.QUEUED: EventType.JOB_QUEUED,
    JobState.RUNNING: EventType.JOB_STARTED,
    JobState.SUCCEEDED: EventType.JOB_SUCCEEDED,
    JobState.FAILED: EventType.JOB_FAILED,
    JobState.CANCELLED: EventType.JOB_CANCELLED,
    JobState.EXPIRED: EventType.JOB_EXPIRED,
}


class DeliveryState(StrEnum):
    WAITING = "waiting"
    """For its first attempt or its next."""
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """No attempt is left, or the webhook was disabled."""

    @property
    def terminal(self) -> bool:
        """True when nothing but a replay changes it any more."""
        return self in (DeliveryState.DELIVERED, DeliveryState.FAILED)


# waiting -> sending -> delivered | failed | waiting; waiting -> failed when the webhook is disabled; a replay takes
# delivered and failed ones back to waiting.


class DisabledCode(StrEnum):
    BY_CALLER = "by_caller"
    GONE = "gone"
    """The receiver answered 410."""
    FAILING = "failing"
    """Nothing was delivered for days."""


BACKOFF_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Pause after each failed attempt but the last: ten attempts over 75 hours on average."""
MAX_ATTEMPTS = len(BACKOFF_SECONDS) + 1
