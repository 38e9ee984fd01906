"""Rounds of the collector: forget what is old, then remove bytes that nothing names. See `catalog.storage.collection`.

A round can be cut off anywhere, by a crash too: whatever it had not finished is found by the next one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from catalog.blobs import Blobs
from catalog.db import Database, db_now
from catalog.settings import Settings
from catalog.storage.collection import Collection, Holdings
from catalog.storage.copies import StoredCopy
from catalog.storage.references import unnamed
from catalog.storage.retention import RULES, Rule, count_old, forget
from catalog.totals.metrics import FORGOTTEN
from catalog.totals.repository import count
from catalog.uploads.repository import open_among

logger = logging.getLogger(__name__)

_BATCH = 200
_ROUND_COPIES = 20_000


@dataclass(frozen=True)
class Survey:
    """What a round would find."""

    old: Mapping[str, int]
    """Rows to forget, by what they are."""
    holdings: Holdings


class _Stopped(Exception):
    """The process ends; the next round goes on."""


class Collector:
    """Of one process; several at once do no harm.

    Args:
        settings: What is old, and how long bytes stay that nothing names.
        database: With the rows that name blobs, and the ledger.
        blobs: The store.
        stopped: Asked between steps; true ends the round.
    """

    def __init__(
        self, settings: Settings, database: Database, blobs: Blobs, *, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._settings = settings
        self._database = database
        self._blobs = blobs
        self._stopped = stopped

    def run_if_due(self) -> Counter[str] | None:
        """A bounded round, when one is due and no other process has taken it; what it did."""
        with self._database.write() as session:
            if not Collection(session).claim_round(every_seconds=self._settings.collect_seconds):
                return None
        return self.run(copies=_ROUND_COPIES)

    def run(self, *, copies: int | None = None) -> Counter[str]:
        """A round, over the whole store unless bounded.

        Args:
            copies: How many copies to count, about, and to remove.

        Returns:
            How many of each were forgotten or removed, and `bytes`.
        """
        done: Counter[str] = Counter()
        try:
            self._blobs.remove_abandoned()
            for rule in RULES:
                done[rule.name] = self._forget(rule)
            self._take_census(copies)
            self._mark_unused()
            self._condemn(copies)
            done["blobs"], done["bytes"] = self._remove(copies)
            self._forget_removals()
        except _Stopped:
            logger.info("collection was cut off by the end of the process")
        self._sum_up()
        level = logging.INFO if any(done.values()) else logging.DEBUG
        logger.log(level, "collected %s", ", ".join(f"{count} {name}" for name, count in done.items()))
        return done

    def survey(self) -> Survey:
        """What there is to collect; changes nothing."""
        grace = self._settings.collect_grace_seconds
        with self._database.read() as session:
            old = {rule.name: count_old(session, rule, self._settings) for rule in RULES}
            more = unnamed(session, stored_before=float("inf"), limit=10_000)
            return Survey(old, Collection(session).holdings(grace_seconds=grace, unnamed=more))

    def _forget(self, rule: Rule) -> int:
        forgotten = 0
        while True:
            self._check()
            with self._database.write() as session:
                keys = forget(session, rule, self._settings)
                if keys:
                    count(session, FORGOTTEN, rule.name, by=len(keys))
            forgotten += len(keys)
            if len(keys) < rule.batch:
                return forgotten

    def _take_census(self, copies: int | None) -> None:
        """Look into the store for what the ledger does not know, some folders each time."""
        with self._database.read() as session:
            state = Collection(session).state()
        start = 0 if copies is None or state is None else state.census_next
        following = seen = 0
        for folder, batch in self._blobs.copies(start):
            if copies is not None and seen >= copies and folder > start:
                following = folder
                break
            self._check()
            seen += len(batch)
            with self._database.write() as session:
                old = Collection(session).take_down(batch, grace_seconds=self._settings.collect_grace_seconds)
            for copy, counts in old:
                self._order_removal(copy, counts)
        with self._database.write() as session:
            Collection(session).set_state(census_next=following)
        self._drop_parts()

    def _order_removal(self, copy: StoredCopy, counts: int) -> None:
        """Have a copy removed that a late writer left. One that is the last is kept: then the ledger is wrong."""
        if not self._blobs.has_copy(copy.sha256, copy.generation):
            return
        if self._is_live(copy.sha256) and not self._blobs.has_copy(copy.sha256, counts):
            logger.warning("blob %s should have generation %d, and has %d", copy.sha256, counts, copy.generation)
            return
        with self._database.write() as session:
            Collection(session).order_removal(copy)

    def _is_live(self, sha256: str) -> bool:
        with self._database.read() as session:
            return Collection(session).is_live(sha256)

    def _drop_parts(self) -> None:
        """Remove parts of uploads that are complete or forgotten: nothing asks for them any more."""
        stored = self._blobs.uploads_with_parts()
        for start in range(0, len(stored), _BATCH):
            several = stored[start : start + _BATCH]
            with self._database.read() as session:
                needed = open_among(session, several)
            for upload_id in several:
                self._check()
                if upload_id not in needed:
                    self._blobs.drop_parts(upload_id)

    def _mark_unused(self) -> None:
        while True:
            self._check()
            with self._database.read() as session:
                before = Collection(session).now() - self._settings.collect_grace_seconds
                digests = unnamed(session, stored_before=before, limit=_BATCH)
            if not digests:
                return
            with self._database.write() as session:
                if not Collection(session).mark_unused(digests):
                    return  # others hold them

    def _condemn(self, limit: int | None) -> None:
        condemned = 0
        while limit is None or condemned < limit:
            self._check()
            with self._database.write() as session:
                number = Collection(session).condemn(grace_seconds=self._settings.collect_grace_seconds, limit=_BATCH)
            if number is None:
                return
            condemned += number

    def _remove(self, limit: int | None) -> tuple[int, int]:
        removed = freed = 0
        while limit is None or removed < limit:
            with self._database.read() as session:
                several = Collection(session).removals(limit=_BATCH)
            if not several:
                break
            self._remove_copies(several)
            with self._database.write() as session:
                number, size = Collection(session).note_removed(several)
            removed, freed = removed + number, freed + size
        return removed, freed

    def _forget_removals(self) -> None:
        while True:
            with self._database.read() as session:
                several = Collection(session).old_removals(limit=_BATCH)
            if not several:
                break
            # Once more: a writer, late itself, may have stored bytes under the old name.
            self._remove_copies(several)
            with self._database.write() as session:
                Collection(session).forget_removals(several)
        while True:
            self._check()
            with self._database.write() as session:
                if Collection(session).forget_blobs(limit=_BATCH) < _BATCH:
                    return

    def _remove_copies(self, copies: Sequence[tuple[str, int]]) -> None:
        for sha256, generation in copies:
            self._check()
            self._blobs.remove(sha256, generation)

    def _sum_up(self) -> None:
        with self._database.read() as session:
            seen = Collection(session).holdings(grace_seconds=self._settings.collect_grace_seconds)
        with self._database.write() as session:
            Collection(session).set_state(
                finished_at=db_now(),
                blobs=seen.blobs,
                bytes=seen.bytes,
                unused_blobs=seen.unused_blobs,
                unused_bytes=seen.unused_bytes,
            )

    def _check(self) -> None:
        if self._stopped():
            raise _Stopped
