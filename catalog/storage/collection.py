"""All SQL of collecting blobs that nothing names: the collector's side of the protocol in `catalog.storage.ledger`.

1. `mark_unused` notes since when nothing names a blob. Whoever names it afterwards (`hold`) or brings its bytes again
   (`note_stored`) takes the mark away.
2. `condemn`, a grace period later, locks the blob's row, looks again whether something names it, and if not raises its
   generation: from its commit on, no reader or writer has a right to that copy, and none ever gets it back.
3. The copy is removed from the store, as often as it takes: nobody else uses its name.
"""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select, tuple_, update
from sqlalchemy.orm import Session

from catalog.db import db_now, read_clock, upsert
from catalog.storage.copies import StoredCopy
from catalog.storage.ledger import enter
from catalog.storage.references import named_among
from catalog.storage.tables import BlobRow, CollectionRow, RemovalRow
from catalog.totals.metrics import COLLECTED_BLOBS, COLLECTED_BYTES
from catalog.totals.repository import count

_ID = 1
MEMORY_SECONDS = 30 * 24 * 3600.0
"""What was removed is remembered for so long, and its generation as long again: no process is stopped for longer."""


@dataclass(frozen=True)
class Holdings:
    """What the ledger says of the store."""

    blobs: int
    bytes: int
    unused_blobs: int
    """Of them, those that nothing names."""
    unused_bytes: int
    due_blobs: int
    """Of them, those that nothing has named for the grace period."""
    due_bytes: int
    condemned: int
    """Copies that are still to be removed from the store."""


class Collection:
    def __init__(self, session: Session) -> None:
        self._session = session

    # Whose turn it is, and what was done

    def claim_round(self, *, every_seconds: float) -> bool:
        """Whether a round is due; then it is the caller's. The first one is due `every_seconds` after the first call.

        A claim is no lock: two rounds at once do no harm.
        """
        self._ensure_row(every_seconds)
        claimed = self._session.scalar(
            update(CollectionRow)
            .where(CollectionRow.id == _ID, CollectionRow.due_at <= db_now())
            .values(due_at=db_now() + every_seconds)
            .returning(CollectionRow.id)
            .execution_options(synchronize_session=False)
        )
        return claimed is not None

    def state(self) -> CollectionRow | None:
        return self._session.get(CollectionRow, _ID)

    def now(self) -> float:
        """By the database's clock."""
        return read_clock(self._session)

    def is_live(self, sha256: str) -> bool:
        """Whether a copy of the blob counts."""
        return bool(self._session.scalar(select(BlobRow.live).where(BlobRow.sha256 == sha256)))

    def set_state(self, **values: object) -> None:
        """Write down where the collector stands; `values` are columns of its row."""
        self._ensure_row(0)
        self._session.execute(
            update(CollectionRow)
            .where(CollectionRow.id == _ID)
            .values(**values)
            .execution_options(synchronize_session=False)
        )

    def _ensure_row(self, seconds: float) -> None:
        zeros = dict.fromkeys(("census_next", "blobs", "bytes", "unused_blobs", "unused_bytes"), 0)
        self._session.execute(
            upsert(self._session, CollectionRow)
            .values(id=_ID, due_at=db_now() + seconds, **zeros)
            .on_conflict_do_nothing()
        )

    # From unnamed to gone

    def mark_unused(self, digests: Several[str]) -> int:
        """Note that nothing names these blobs; how many of them were not known as such."""
        locked = self._session.scalars(
            select(BlobRow.sha256)
            .where(BlobRow.sha256.in_(digests), BlobRow.live, BlobRow.unused_since.is_(None))
            .order_by(BlobRow.sha256)
            .with_for_update(skip_locked=True)
        ).all()
        self._update(locked, unused_since=db_now())
        return len(locked)

    def condemn(self, *, grace_seconds: float, limit: int) -> int | None:
        """Give up blobs that nothing has named for the grace period; how many, None when none is due.

        Rows that an adopter holds are skipped. Those that are locked here make adopters wait, and what adopters
        committed before is seen by `named_among`, a statement that begins after the locks are held.
        """
        before = read_clock(self._session) - grace_seconds
        due = self._session.execute(
            select(BlobRow.sha256, BlobRow.generation, BlobRow.size)
            .where(BlobRow.live, BlobRow.unused_since < before, BlobRow.stored_at < before)
            .order_by(BlobRow.sha256)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        if not due:
            return None
        named = named_among(self._session, [row.sha256 for row in due])
        self._update(named, unused_since=None)
        unnamed = [row for row in due if row.sha256 not in named]
        self._give_up([row.sha256 for row in unnamed])
        for row in unnamed:
            self._order_removal(row.sha256, row.generation, row.size)
        return len(unnamed)

    def removals(self, *, limit: int) -> Sequence[tuple[str, int]]:
        """Copies to remove from the store, by digest and generation."""
        query = select(RemovalRow.sha256, RemovalRow.generation).where(RemovalRow.removed_at.is_(None))
        return [(row.sha256, row.generation) for row in self._session.execute(query.limit(limit))]

    def note_removed(self, copies: Sequence[tuple[str, int]]) -> tuple[int, int]:
        """Note that these copies are gone; how many, and their bytes, of those that were not known to be."""
        sizes = self._session.scalars(
            update(RemovalRow)
            .where(tuple_(RemovalRow.sha256, RemovalRow.generation).in_(copies), RemovalRow.removed_at.is_(None))
            .values(removed_at=db_now())
            .returning(RemovalRow.size)
            .execution_options(synchronize_session=False)
        ).all()
        number, freed = len(sizes), sum(size or 0 for size in sizes)
        if sizes:
            count(self._session, COLLECTED_BLOBS, by=number)
            count(self._session, COLLECTED_BYTES, by=freed)
        return number, freed

    def old_removals(self, *, limit: int) -> Sequence[tuple[str, int]]:
        """Copies that were removed so long ago that the memory of it can go."""
        query = select(RemovalRow.sha256, RemovalRow.generation).where(
            RemovalRow.removed_at < db_now() - MEMORY_SECONDS
        )
        return [(row.sha256, row.generation) for row in self._session.execute(query.limit(limit))]

    def forget_removals(self, copies: Sequence[tuple[str, int]]) -> None:
        """Forget removals. Their blobs are remembered for as long again: somebody may just be about to remove more."""
        self._session.execute(
            delete(RemovalRow)
            .where(tuple_(RemovalRow.sha256, RemovalRow.generation).in_(copies))
            .execution_options(synchronize_session=False)
        )
        self._session.execute(
            update(BlobRow)
            .where(BlobRow.sha256.in_({sha256 for sha256, _ in copies}), ~BlobRow.live)
            .values(stored_at=db_now())
            .execution_options(synchronize_session=False)
        )

    def forget_blobs(self, *, limit: int) -> int:
        """Forget blobs of which nothing was there for a long time; how many. They begin anew when they come back."""
        known = self._session.scalars(
            select(BlobRow.sha256)
            .where(
                ~BlobRow.live,
                BlobRow.stored_at < db_now() - MEMORY_SECONDS,
                ~select(RemovalRow.sha256).where(RemovalRow.sha256 == BlobRow.sha256).exists(),
            )
            .order_by(BlobRow.sha256)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        self._session.execute(
            delete(BlobRow).where(BlobRow.sha256.in_(known)).execution_options(synchronize_session=False)
        )
        return len(known)

    # The census

    def take_down(self, copies: Sequence[StoredCopy], *, grace_seconds: float) -> list[tuple[StoredCopy, int]]:
        """Compare copies that are in the store with the ledger, and enter those that it does not know.

        Returns:
            Copies of generations before the one that counts, with the latter.
        """
        known = {
            row.sha256: row
            for row in self._session.scalars(
                select(BlobRow)
                .where(BlobRow.sha256.in_({copy.sha256 for copy in copies}))
                .order_by(BlobRow.sha256)
                .with_for_update()
            )
        }
        before = read_clock(self._session) - grace_seconds
        old: list[tuple[StoredCopy, int]] = []
        new = []
        for copy in copies:
            row = known.get(copy.sha256)
            if row is None:
                new.append({"sha256": copy.sha256, "generation": copy.generation, "size": copy.size})
            elif copy.generation < row.generation:
                old.append((copy, row.generation))
            elif copy.generation > row.generation:
                # The database is older than the store: it was restored from a backup.
                self._update([row.sha256], generation=copy.generation, live=True, stored_at=db_now(), unused_since=None)
            elif row.live:
                row.size = copy.size
            elif copy.modified < before:
                # Whoever stored it died before it could say so.
                self._give_up([row.sha256])
                self._order_removal(row.sha256, row.generation, copy.size)
        if new:
            enter(self._session, new)
        return old

    def order_removal(self, copy: StoredCopy) -> None:
        """Have a copy removed, once more if need be, of which a later generation counts."""
        generation = self._session.scalar(
            select(BlobRow.generation).where(BlobRow.sha256 == copy.sha256).with_for_update()
        )
        if generation is not None and generation > copy.generation:
            self._order_removal(copy.sha256, copy.generation, copy.size)

    # What there is

    def holdings(self, *, grace_seconds: float, unnamed: Several[str] = ()) -> Holdings:
        """Numbers over the ledger; `unnamed` are blobs that count as unused though they are not marked."""
        before = read_clock(self._session) - grace_seconds
        unused = or_(BlobRow.unused_since.is_not(None), BlobRow.sha256.in_(unnamed))
        due = (BlobRow.unused_since < before) & (BlobRow.stored_at < before)
        size = func.coalesce(BlobRow.size, 0)
        numbers = self._session.execute(
            select(
                func.count(),
                func.coalesce(func.sum(size), 0),
                func.count().filter(unused),
                func.coalesce(func.sum(size).filter(unused), 0),
                func.count().filter(due),
                func.coalesce(func.sum(size).filter(due), 0),
            )
            .select_from(BlobRow)
            .where(BlobRow.live)
        ).one()
        condemned = select(func.count()).select_from(RemovalRow).where(RemovalRow.removed_at.is_(None))
        return Holdings(*map(int, (*numbers, self._session.scalar(condemned) or 0)))

    def _update(self, digests: Several[str], **values: object) -> None:
        if digests:
            self._session.execute(
                update(BlobRow)
                .where(BlobRow.sha256.in_(digests))
                .values(**values)
                .execution_options(synchronize_session=False)
            )

    def _give_up(self, digests: Several[str]) -> None:
        self._update(digests, live=False, generation=BlobRow.generation + 1, unused_since=None)

    def _order_removal(self, sha256: str, generation: int, size: int | None) -> None:
        values = {"size": size, "condemned_at": db_now(), "removed_at": None}
        self._session.execute(
            upsert(self._session, RemovalRow)
            .values(sha256=sha256, generation=generation, **values)
            .on_conflict_do_update(index_elements=[RemovalRow.sha256, RemovalRow.generation], set_=values)
        )
