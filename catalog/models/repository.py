"""All SQL about models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from catalog.audit.repository import note
from catalog.db import Json, db_now, kept, newest_first
from catalog.errors import Conflict, NotFound
from catalog.ids import new_id
from catalog.jobs.step_cache import FinishedSteps
from catalog.models.states import ModelState
from catalog.models.tables import ModelRow
from catalog.storage.ledger import hold


class Models:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, *, name: str, files: Sequence[Json], source: Json | None = None) -> ModelRow:
        """Note a model; `files` are `{name, sha256, size}`, the graph first; `source` as in the table."""
        hold(self._session, [file["sha256"] for file in files])
        row = ModelRow(
            id=new_id("mdl"),
            name=name,
            state=ModelState.INSPECTING,
            source=source,
            created_at=db_now(),
            **contents(files),
        )
        self._session.add(row)
        self._session.flush()
        note(self._session, "model.created", row.id)
        self._session.refresh(row)
        return row

    def get(self, model_id: str, *, lock: bool = False, keep: bool = False) -> ModelRow:
        """The model; `lock` keeps others from using it until the transaction ends, `keep` from deleting it."""
        row = (
            kept(self._session, ModelRow, model_id)
            if keep
            else self._session.get(ModelRow, model_id, with_for_update=lock or None)
        )
        if row is None:
            raise NotFound(f"There is no model {model_id}.", code="model_not_found")
        return row

    def get_usable(self, model_id: str) -> ModelRow:
        """The model, kept; refused when its inspection rejected it, or has not made its graph yet."""
        row = self.get(model_id, keep=True)
        if row.state == ModelState.REJECTED:
            raise self._rejected(row)
        if row.state == ModelState.INSPECTING and row.source is not None:
            raise Conflict(
                f"Model {model_id} is still being made from its weights: wait until its state is ready "
                "(GET it with Prefer: wait=30).",
                code="model_not_ready",
            )
        return row

    def get_ready(self, model_id: str) -> ModelRow:
        """The model, refused as long as its inspection has not found it sound."""
        row = self.get(model_id)
        if row.state == ModelState.INSPECTING:
            message = f"Model {model_id} is still being inspected: wait until its state is ready."
            raise Conflict(message, code="model_not_ready")
        if row.state == ModelState.REJECTED:
            raise self._rejected(row)
        return row

    def page(self, *, limit: int, before_id: str | None = None) -> Sequence[ModelRow]:
        """Newest first, those older than `before_id`."""
        query = newest_first(select(ModelRow), ModelRow.id, limit=limit, before_id=before_id)
        return self._session.scalars(query).all()

    @staticmethod
    def _rejected(row: ModelRow) -> Conflict:
        reason = (row.error or {}).get("message", "")
        return Conflict(f"Model {row.id} was rejected: {reason}", code="model_rejected")

    def delete(self, row: ModelRow) -> None:
        """Forget the model, and the steps made from it unless there is another of the same content."""
        note(self._session, "model.deleted", row.id)
        self._session.delete(row)
        self._session.flush()
        same = select(ModelRow.id).where(ModelRow.tenant == row.tenant, ModelRow.sha256 == row.sha256).limit(1)
        if self._session.scalar(same) is None:
            FinishedSteps(self._session, row.tenant).drop_of_model(row.sha256)


def contents(files: Sequence[Json]) -> Json:
    """What a model's row says of its files."""
    return {
        "files": list(files),
        "sha256": files[0]["sha256"] if len(files) == 1 else _joint_hash(files),
        "size": sum(file["size"] for file in files),
    }


def _joint_hash(files: Sequence[Json]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file['name']}\0{file['sha256']}\n".encode())
    return digest.hexdigest()
