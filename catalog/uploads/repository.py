"""All SQL about uploads."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from catalog.audit.repository import note
from catalog.db import db_now
from catalog.errors import Conflict, NotFound
from catalog.ids import new_id
from catalog.storage.ledger import hold
from catalog.uploads.states import UploadState
from catalog.uploads.tables import PartRow, UploadRow


class Uploads:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, *, filename: str, size: int | None, sha256: str | None) -> UploadRow:
        row = UploadRow(
            id=new_id("upl"),
            state=UploadState.OPEN,
            filename=filename,
            declared_size=size,
            declared_sha256=sha256,
            created_at=db_now(),
        )
        self._session.add(row)
        self._session.flush()
        note(self._session, "upload.created", row.id)
        self._session.refresh(row)
        return row

    def get(self, upload_id: str, *, lock: bool = False) -> UploadRow:
        """The upload; `lock` keeps others from changing it until the transaction ends."""
        row = self._session.get(UploadRow, upload_id, with_for_update=lock or None)
        if row is None:
            raise _no_upload(upload_id)
        return row

    def get_open(self, upload_id: str) -> UploadRow:
        row = self.get(upload_id, lock=True)
        if row.state != UploadState.OPEN:
            raise Conflict(
                f"Upload {upload_id} is complete; create a new one to send other bytes.", code="upload_complete"
            )
        return row

    def get_complete(self, upload_id: str) -> UploadRow:
        row = self.get(upload_id, lock=True)
        if row.state != UploadState.COMPLETE:
            raise Conflict(
                f"Upload {upload_id} is not complete yet: send its content, or its parts and then complete it.",
                code="upload_incomplete",
            )
        return row

    def touch(self, upload_id: str) -> UploadRow:
        """Note that something arrives, so that the upload is not taken for abandoned."""
        row = self._session.scalars(
            update(UploadRow)
            .where(UploadRow.id == upload_id)
            .values(active_at=db_now())
            .returning(UploadRow)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None:
            raise _no_upload(upload_id)
        return row

    def put_part(self, upload_id: str, number: int, *, size: int, sha256: str) -> PartRow:
        """Note a stored part; sending a number again replaces it."""
        self.get_open(upload_id)
        self.touch(upload_id)
        return self._session.merge(PartRow(upload_id=upload_id, number=number, size=size, sha256=sha256))

    def parts(self, upload_id: str) -> Sequence[PartRow]:
        return self._session.scalars(
            select(PartRow).where(PartRow.upload_id == upload_id).order_by(PartRow.number)
        ).all()

    def complete(self, upload_id: str, *, size: int, sha256: str) -> UploadRow:
        row = self.get_open(upload_id)
        hold(self._session, [sha256])
        self._session.execute(
            update(UploadRow)
            .where(UploadRow.id == upload_id)
            .values(state=UploadState.COMPLETE, size=size, sha256=sha256, completed_at=db_now())
        )
        self._session.execute(delete(PartRow).where(PartRow.upload_id == upload_id))
        self._session.refresh(row)
        return row

    def delete(self, upload_id: str) -> None:
        self._session.delete(self.get(upload_id, lock=True))
        note(self._session, "upload.deleted", upload_id)


def open_among(session: Session, upload_ids: Collection[str]) -> set[str]:
    """Those of the uploads whose parts may still be asked for."""
    query = select(UploadRow.id).where(UploadRow.id.in_(upload_ids), UploadRow.state == UploadState.OPEN)
    return set(session.scalars(query))


def _no_upload(upload_id: str) -> NotFound:
    return NotFound(f"There is no upload {upload_id}.", code="upload_not_found")
