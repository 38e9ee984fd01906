"""All SQL about finished steps."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from catalog.db import Json, db_now
from catalog.jobs.tables import StepCacheRow
from catalog.storage.ledger import hold


class FinishedSteps:
    """Of one tenant."""

    def __init__(self, session: Session, tenant: str) -> None:
        self._session = session
        self._tenant = tenant

    def put(self, key: str, files: Sequence[Json], *, model_sha256: str | None = None) -> None:
        """Note what a finished step left of a model; the files' bytes are in the blob store already."""
        hold(self._session, [file["sha256"] for file in files])
        now = db_now()
        self._session.merge(
            StepCacheRow(
                tenant=self._tenant,
                key=key,
                files=list(files),
                model_sha256=model_sha256,
                created_at=now,
                used_at=now,
            )
        )

    def drop(self, key: str) -> None:
        """Forget a key."""
        self._session.execute(delete(StepCacheRow).where(*self._is(key)))

    def drop_of_model(self, model_sha256: str) -> None:
        """Forget all that was made from a model."""
        self._session.execute(
            delete(StepCacheRow)
            .where(StepCacheRow.tenant == self._tenant, StepCacheRow.model_sha256 == model_sha256)
            .execution_options(synchronize_session=False)
        )

    def get(self, key: str) -> list[Json]:
        """The files that are noted under a key, marked as used; none where it is not known."""
        files = self._session.scalar(
            update(StepCacheRow).where(*self._is(key)).values(used_at=db_now()).returning(StepCacheRow.files)
        )
        return list(files or ())

    def longest_prefix(self, keys: Sequence[str]) -> StepCacheRow | None:
        """The last of `keys` (in pipeline order) that is known, marked as used."""
        query = select(StepCacheRow).where(StepCacheRow.tenant == self._tenant, StepCacheRow.key.in_(keys))
        known = {row.key: row for row in self._session.scalars(query)}
        for key in reversed(keys):
            # It may be forgotten in this moment.
            if key in known and self._touch(key):
                return known[key]
        return None

    def _touch(self, key: str) -> bool:
        """Mark a key as used; whether it is still there."""
        touched = update(StepCacheRow).where(*self._is(key)).values(used_at=db_now()).returning(StepCacheRow.key)
        return self._session.scalar(touched.execution_options(synchronize_session=False)) is not None

    def _is(self, key: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return StepCacheRow.tenant == self._tenant, StepCacheRow.key == key
