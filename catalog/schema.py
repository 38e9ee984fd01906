"""Every table, in one import: for migrations and for comparing them with the code."""

from __future__ import annotations

from catalog.audit.tables import AuditRow
from catalog.datasets.tables import DatasetRow
from catalog.jobs.tables import (
    ArtifactRow,
    AttemptRow,
    EventRow,
    IdempotencyRow,
    JobDatasetRow,
    JobRow,
    StepCacheRow,
)
from catalog.keys.tables import ApiKeyRow
from catalog.models.tables import ModelRow
from catalog.storage.tables import BlobRow, CollectionRow, RemovalRow
from catalog.tenants.tables import TenantRow, UsageRow
from catalog.totals.tables import TotalRow
from catalog.uploads.tables import PartRow, UploadRow
from catalog.webhooks.tables import DeliveryAttemptRow, DeliveryRow, WebhookRow
from catalog.workers.tables import WorkerRow

__all__ = [
    "ApiKeyRow",
    "ArtifactRow",
    "AttemptRow",
    "AuditRow",
    "BlobRow",
    "CollectionRow",
    "DatasetRow",
    "DeliveryAttemptRow",
    "DeliveryRow",
    "EventRow",
    "IdempotencyRow",
    "JobDatasetRow",
    "JobRow",
    "ModelRow",
    "PartRow",
    "RemovalRow",
    "StepCacheRow",
    "TenantRow",
    "TotalRow",
    "UploadRow",
    "UsageRow",
    "WebhookRow",
    "WorkerRow",
]
