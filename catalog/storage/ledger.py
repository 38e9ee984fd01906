"""All SQL of taking bytes in and naming them: the adopters' side of the collector's protocol.

An adopter asks for the digest's `generation`, stores the bytes under it, notes that with `note_stored`, and names the
digest in some row in a later transaction that calls `hold` first. The collector gives a copy up by raising the
generation in a transaction of its own (`catalog.storage.collector`). Both lock the digest's row, so one of them is
first: an adopter who comes too late is told so by `note_stored` (then it stores the bytes again) or by `hold`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from catalog.db import Database, db_now, upsert
from catalog.errors import BytesGone
from catalog.storage.tables import BlobRow


class DatabaseLedger:
    """The store's ledger in the database; each call is a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def generation(self, sha256: str) -> int:
        """Which copy of these bytes counts, or would."""
        with self._database.read() as session:
            return session.scalar(select(BlobRow.generation).where(BlobRow.sha256 == sha256)) or 0

    def note_stored(self, sha256: str, *, generation: int, size: int) -> bool:
        """Note that this copy is there; False when it was given up meanwhile, and another one must be stored."""
        with self._database.write() as session:
            values = {"live": True, "size": size, "stored_at": db_now(), "unused_since": None}
            noted = session.scalar(
                upsert(session, BlobRow)
                .values(sha256=sha256, generation=generation, **values)
                .on_conflict_do_update(
                    index_elements=[BlobRow.sha256], set_=values, where=BlobRow.generation == generation
                )
                .returning(BlobRow.sha256)
            )
        return noted is not None


def hold(session: Session, digests: Iterable[str]) -> None:
    """Call this in every transaction that makes a row name blobs, before it does; all of them in one call.

    What the ledger does not know, from before it was kept, is entered.

    Raises:
        BytesGone: The collector was first, for the bytes had been stored long ago and nothing named them.
    """
    wanted = sorted(set(digests))
    if not wanted:
        return
    known = {
        row.sha256: row
        for row in session.execute(
            # Locked in one order, so that two who hold the same blobs do not wait for each other.
            select(BlobRow.sha256, BlobRow.live, BlobRow.unused_since)
            .where(BlobRow.sha256.in_(wanted))
            .order_by(BlobRow.sha256)
            .with_for_update()
        )
    }
    gone = [sha256 for sha256, row in known.items() if not row.live]
    if gone:
        raise BytesGone(f"The bytes of {', '.join(gone)} were stored too long ago and are gone; store them again.")
    unused = [sha256 for sha256, row in known.items() if row.unused_since is not None]
    if unused:
        session.execute(update(BlobRow).where(BlobRow.sha256.in_(unused)).values(unused_since=None))
    new = [sha256 for sha256 in wanted if sha256 not in known]
    if new:
        enter(session, [{"sha256": sha256} for sha256 in new])


def enter(session: Session, rows: list[dict[str, Any]]) -> None:
    """Note blobs that are in the store and not in the ledger; those that are in it stay as they are."""
    values = [{"generation": 0, "size": None, **row, "live": True, "stored_at": db_now()} for row in rows]
    session.execute(upsert(session, BlobRow).values(values).on_conflict_do_nothing())
