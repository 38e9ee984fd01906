"""All SQL about finished steps."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from catalog.db import Json, db_now
from catalog.jobs.tables import StepCacheRow


class FinishedSteps:
    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, key: str, files: Sequence[Json]) -> None:
        """Note what a finished step left; the files' bytes are in the blob store already."""
        now = db_now()
        self._session.merge(StepCacheRow(key=key, files=list(files), created_at=now, used_at=now))

    def drop(self, key: str) -> None:
        """Forget a key."""
        self._session.execute(delete(StepCacheRow).where(StepCacheRow.key == key))

    def get(self, key: str) -> list[Json]:
        """The files that are noted under a key; none where it is not known."""
        row = self._session.get(StepCacheRow, key)
        return [] if row is None else list(row.files)

    def longest_prefix(self, keys: Sequence[str]) -> StepCacheRow | None:
        """The last of `keys` (in pipeline order) that is known, marked as used."""
        known = {row.key: row for row in self._session.scalars(select(StepCacheRow).where(StepCacheRow.key.in_(keys)))}
        for key in reversed(keys):
            if key in known:
                self._session.execute(update(StepCacheRow).where(StepCacheRow.key == key).values(used_at=db_now()))
                return known[key]
        return None
