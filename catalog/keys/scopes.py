"""What a key may be allowed."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    READ = "read"
    """Look at everything of the tenant, and fetch files."""
    WRITE = "write"
    """Make and delete uploads, models and datasets."""
    JOBS = "jobs"
    """Submit, cancel, retry and delete jobs."""
    WEBHOOKS = "webhooks"
    """Choose where events are sent."""
    ADMIN = "admin"
    """Manage the tenant's keys and read its audit log."""
    METRICS = "metrics"
    """Read the whole service's metrics, which tell of all tenants together: for the operator's Prometheus."""


TENANT_SCOPES = tuple(scope for scope in Scope if scope != Scope.METRICS)
EVERYTHING = frozenset(Scope)
