"""What is said about what a tenant uses."""

from __future__ import annotations

from pydantic import Field

from api.dependencies import Document
from catalog.db import Json
from catalog.jobs.states import Queue
from catalog.tenants.tables import TenantRow
from catalog.tenants.usage import USAGE_WINDOW_SECONDS
from catalog.tenants.usage import Usage as Used


class UsageLimits(Document):
    """What the operator allows; null where nothing is limited."""

    max_bytes: int | None
    max_queued_jobs: int | None
    max_worker_seconds: float | None
    """In the window."""
    requests_per_minute: int | None
    share: float
    """Weight where several tenants want the same workers."""


class Usage(Document):
    """What the caller's tenant has and did."""

    tenant: str
    stored_bytes: int = Field(ge=0)
    """Of its uploads, models, datasets and artifacts; files of equal content count once."""
    queued_jobs: int = Field(ge=0)
    """Inspections included."""
    running_jobs: int = Field(ge=0)
    window_seconds: int
    """Workers' time is that of the window up to now."""
    worker_seconds: dict[Queue, float]
    """Time that its attempts took, by queue; of jobs that were deleted too."""
    limits: UsageLimits


def usage_json(tenant: str, used: Used, limits: TenantRow | None, *, requests_per_minute: int) -> Json:
    own = limits and limits.requests_per_minute
    return {
        "tenant": tenant,
        "stored_bytes": used.bytes,
        "queued_jobs": used.queued_jobs,
        "running_jobs": used.running_jobs,
        "window_seconds": USAGE_WINDOW_SECONDS,
        "worker_seconds": {str(queue): round(seconds, 3) for queue, seconds in used.worker_seconds.items()},
        "limits": {
            "max_bytes": limits and limits.max_bytes,
            "max_queued_jobs": limits and limits.max_queued_jobs,
            "max_worker_seconds": limits and limits.max_worker_seconds,
            "requests_per_minute": own or requests_per_minute or None,
            "share": 1.0 if limits is None else limits.share,
        },
    }
