"""All SQL of forgetting what is old: uploads, jobs, Idempotency-Keys, finished steps, hours of use.

Rows that somebody works with are locked, and skipped until the next round. What a forgotten row named may then be
collected (`catalog.storage.collection`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, select, tuple_
from sqlalchemy.orm import Session

from catalog.db import Base, db_now
from catalog.jobs.states import TERMINAL
from catalog.jobs.tables import IdempotencyRow, JobRow, StepCacheRow
from catalog.settings import Settings
from catalog.tenants.tables import UsageRow
from catalog.tenants.usage import HOUR_SECONDS, USAGE_WINDOW_SECONDS
from catalog.uploads.tables import UploadRow


@dataclass(frozen=True)
class Rule:
    """What of a table is old.

    Attributes:
        name: Of what is forgotten; metrics call it so.
        table: Where it is.
        key: Columns of its primary key.
        old: When a row of it is, by the settings; None where they keep all.
        batch: Rows to forget in one transaction.
    """

    name: str
    table: type[Base]
    key: tuple[Any, ...]
    old: Callable[[Settings], ColumnElement[bool] | None]
    batch: int = 500


def _old_upload(settings: Settings) -> ColumnElement[bool]:
    last = func.coalesce(UploadRow.completed_at, UploadRow.active_at, UploadRow.created_at)
    return last < db_now() - settings.upload_retention_seconds


def _old_job(settings: Settings) -> ColumnElement[bool] | None:
    if not settings.job_retention_seconds:
        return None
    return and_(JobRow.state.in_(TERMINAL), JobRow.finished_at < db_now() - settings.job_retention_seconds)


RULES = (
    Rule("uploads", UploadRow, (UploadRow.id,), _old_upload),
    # Each brings many events with it.
    Rule("jobs", JobRow, (JobRow.id,), _old_job, batch=50),
    Rule(
        "idempotency_keys",
        IdempotencyRow,
        (IdempotencyRow.tenant, IdempotencyRow.key),
        lambda settings: IdempotencyRow.created_at < db_now() - settings.idempotency_retention_seconds,
    ),
    Rule(
        "steps",
        StepCacheRow,
        (StepCacheRow.tenant, StepCacheRow.key),
        lambda settings: StepCacheRow.used_at < db_now() - settings.step_cache_retention_seconds,
    ),
    Rule(
        "usage",
        UsageRow,
        (UsageRow.tenant, UsageRow.hour, UsageRow.queue),
        # Hours that had ended when the window began.
        lambda _settings: UsageRow.hour < (db_now() - USAGE_WINDOW_SECONDS) / HOUR_SECONDS - 1,
    ),
)


def forget(session: Session, rule: Rule, settings: Settings) -> Sequence[tuple[Any, ...]]:
    """Delete a batch of what is old; the keys of what was deleted."""
    old = rule.old(settings)
    if old is None:
        return ()
    query = select(*rule.key).where(old).limit(rule.batch).with_for_update(skip_locked=True)
    keys = [tuple(row) for row in session.execute(query)]
    if keys:
        session.execute(
            delete(rule.table).where(tuple_(*rule.key).in_(keys)).execution_options(synchronize_session=False)
        )
    return keys


def count_old(session: Session, rule: Rule, settings: Settings) -> int:
    """How many rows `forget` would delete, batch by batch."""
    old = rule.old(settings)
    if old is None:
        return 0
    return session.scalar(select(func.count()).select_from(rule.table).where(old)) or 0
