"""All SQL about datasets."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog.audit.repository import note
from catalog.datasets.states import DatasetState
from catalog.datasets.tables import DatasetRow
from catalog.db import Json, db_now, kept, newest_first
from catalog.errors import Conflict, NotFound
from catalog.ids import new_id
from catalog.storage.ledger import hold


class Datasets:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, *, name: str, sha256: str, size: int, images: Json | None) -> DatasetRow:
        hold(self._session, [sha256])
        row = DatasetRow(
            id=new_id("dts"),
            name=name,
            state=DatasetState.INSPECTING,
            images=images,
            sha256=sha256,
            size=size,
            created_at=db_now(),
        )
        self._session.add(row)
        self._session.flush()
        note(self._session, "dataset.created", row.id)
        self._session.refresh(row)
        return row

    def get(self, dataset_id: str, *, lock: bool = False, keep: bool = False) -> DatasetRow:
        """The dataset; `lock` keeps others from using it until the transaction ends, `keep` from deleting it."""
        row = (
            kept(self._session, DatasetRow, dataset_id)
            if keep
            else self._session.get(DatasetRow, dataset_id, with_for_update=lock or None)
        )
        if row is None:
            raise NotFound(f"There is no dataset {dataset_id}.", code="dataset_not_found")
        return row

    def get_usable(self, dataset_id: str) -> DatasetRow:
        """The dataset, kept; refused when its inspection rejected it."""
        row = self.get(dataset_id, keep=True)
        if row.state == DatasetState.REJECTED:
            reason = (row.error or {}).get("message", "")
            raise Conflict(f"Dataset {dataset_id} was rejected: {reason}", code="dataset_rejected")
        return row

    def page(self, *, limit: int, before_id: str | None = None) -> Sequence[DatasetRow]:
        """Newest first, those older than `before_id`."""
        query = newest_first(select(DatasetRow), DatasetRow.id, limit=limit, before_id=before_id)
        return self._session.scalars(query).all()

    def delete(self, row: DatasetRow) -> None:
        note(self._session, "dataset.deleted", row.id)
        self._session.delete(row)
