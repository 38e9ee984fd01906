"""What is collected and what is not, each with one actor at a time; the races are in `test_collection_races`."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import JSON, String, update

import catalog.schema  # noqa: F401 - fills the metadata
from catalog.db import Base
from catalog.errors import BytesGone
from catalog.storage.collection import MEMORY_SECONDS, Collection
from catalog.storage.copies import key_of
from catalog.storage.ledger import hold
from catalog.storage.references import NAMING_COLUMNS, named, named_among
from catalog.storage.tables import BlobRow, CollectionRow, RemovalRow
from catalog.totals.metrics import COLLECTED_BLOBS, COLLECTED_BYTES
from catalog.totals.repository import Totals
from tests.catalog.storing import GRACE, WAYS, Store, digest

NOT_BLOBS = {
    # What a cached step was made from, to forget it with the model.
    ("step_cache", "model_sha256"),
    ("api_keys", "sha256"),
    ("blobs", "sha256"),
    ("blob_removals", "sha256"),
    ("idempotency_keys", "body_sha256"),
    # What a caller announced; nothing needs to be there.
    ("uploads", "declared_sha256"),
    # Over all files of a model, each of which is named in `files`.
    ("models", "sha256"),
    # Below `uploads/` in the store, and with the upload's id in its name.
    ("upload_parts", "sha256"),
}
NO_DIGEST_WITHIN = {"labels", "spec", "result", "error", "data", "images", "summary", "capabilities", "scopes"}
NO_DIGEST_WITHIN |= {"events", "disabled"}


@pytest.fixture
def store(database, tmp_path):
    return Store(database, tmp_path)


def test_every_column_that_may_name_a_blob_is_looked_at():
    found = set()
    for table in Base.metadata.tables.values():
        for column in table.columns:
            if (isinstance(column.type, String) and "sha256" in column.name) or isinstance(column.type, JSON):
                found.add((table.name, column.name))
    unknown = {
        (table, column) for table, column in found - NAMING_COLUMNS - NOT_BLOBS if column not in NO_DIGEST_WITHIN
    }
    assert unknown == set(), "a new column: does it name blobs (catalog/storage/references.py), or not (here)?"
    assert found >= NAMING_COLUMNS | NOT_BLOBS


@pytest.mark.parametrize("way", WAYS)
def test_what_is_named_stays_and_goes_when_nothing_names_it_any_more(store, way):
    sha256, other = store.put(b"needed"), store.put(b"not needed")
    row_id = store.name(sha256, way)
    with store.database.read() as session:
        assert sha256 in named(session)
        assert named_among(session, [sha256, other]) == {sha256}
    store.settle()
    assert store.whole(sha256) == b"needed"
    assert not store.blobs.exists(other)
    store.unname(row_id, way)
    store.settle()
    assert store.files() == []


def test_two_names_for_one_blob(store):
    sha256 = store.put(b"x")
    first, second = store.name(sha256, "model"), store.name(sha256, "step")
    store.unname(first, "model")
    store.settle()
    assert store.blobs.exists(sha256)
    store.unname(second, "step")
    store.settle()
    assert not store.blobs.exists(sha256)


def test_the_grace_period_passes_twice_before_anything_goes(store):
    sha256 = store.put(b"x")
    store.collector().run()
    assert store.row(sha256).unused_since is None, "just stored: somebody may be about to name it"
    store.age(GRACE + 1)
    store.collector().run()
    assert store.row(sha256).unused_since is not None
    assert store.blobs.exists(sha256)
    store.age(GRACE - 5)
    store.collector().run()
    assert store.blobs.exists(sha256)
    store.age(10)
    assert dict(store.collector().run())["blobs"] == 1
    assert not store.blobs.exists(sha256)


def test_naming_and_storing_take_the_mark_away(store):
    sha256 = store.put(b"x")
    for again in (lambda: store.put(b"x"), lambda: store.unname(store.name(sha256))):
        store.age()
        store.collector().run()
        assert store.row(sha256).unused_since is not None
        again()
        assert store.row(sha256).unused_since is None
        store.age(GRACE / 2)
        store.collector().run()
        assert store.blobs.exists(sha256)


def test_what_comes_back_gets_a_place_of_its_own(store):
    sha256 = store.put(b"x")
    store.settle()
    assert store.files() == []
    with pytest.raises(BytesGone), store.database.write() as session:
        hold(session, [sha256])
    for generation in (1, 2):
        assert store.put(b"x") == sha256
        assert store.files() == [key_of(sha256, generation)]
        assert store.whole(sha256) == b"x"
        assert store.blobs.local_path(sha256).read_bytes() == b"x"
        row_id = store.name(sha256)
        store.settle()
        assert store.whole(sha256) == b"x"
        store.unname(row_id)
        store.settle()
        assert store.files() == []


def test_a_long_time_later_nothing_is_remembered(store):
    sha256 = store.put(b"x")
    store.settle()
    # A writer that was late itself: its bytes lie under the name that was given up.
    path = store.settings.root / "blobs" / key_of(sha256, 0)
    path.write_bytes(b"x")
    store.collector().run()
    assert store.files() == []
    with store.database.write() as session:
        session.execute(update(RemovalRow).values(removed_at=RemovalRow.removed_at - MEMORY_SECONDS))
    store.collector().run()
    assert store.removals() == []
    assert store.row(sha256).generation == 1, "who is late, and removes again, must not find it under the first name"
    store.age(MEMORY_SECONDS)
    store.collector().run()
    assert store.row(sha256) is None
    assert store.removals() == []
    store.put(b"x")
    assert store.files() == [key_of(sha256, 0)]


def test_the_census_finds_what_the_ledger_does_not_know(store):
    """A store from before there was a ledger, and what writers left that died between storing and noting."""
    named_one, left = digest(b"named"), digest(b"left")
    for content in (b"named", b"left"):
        staged = store.blobs.new_staging_path()
        staged.write_bytes(content)
        store.blobs._put(staged, key_of(digest(content), 0))
    store.name(named_one, "model")  # enters it
    store.collector().run()
    assert store.row(left).size == 4
    store.settle()
    assert store.files() == [key_of(named_one, 0)]


def test_the_census_finds_a_later_copy_that_nobody_noted(store):
    sha256 = store.put(b"x")
    store.settle()
    staged = store.blobs.new_staging_path()
    staged.write_bytes(b"x")
    store.blobs._put(staged, key_of(sha256, 1))
    store.collector().run()
    assert store.files() == [key_of(sha256, 1)], "whoever stored it may be about to note it"
    path = store.settings.root / "blobs" / key_of(sha256, 1)
    os.utime(path, (time.time() - 2 * GRACE,) * 2)
    store.collector().run()
    assert store.files() == []
    assert store.put(b"x") == sha256
    assert store.files() == [key_of(sha256, 2)]


def test_the_census_removes_what_a_late_writer_left_beside_the_copy_that_counts(store):
    sha256 = store.put(b"x")
    store.settle()
    store.put(b"x")
    store.name(sha256)
    (store.settings.root / "blobs" / key_of(sha256, 0)).write_bytes(b"x")
    store.collector().run()
    assert store.files() == [key_of(sha256, 1)]


def test_a_database_that_is_older_than_the_store_loses_nothing(store):
    """Restored from a backup: the ledger names generations that are gone, or does not know those that came."""
    newer, older = store.put(b"newer"), store.put(b"older")
    for sha256 in (newer, older):
        store.name(sha256)
    root = store.settings.root / "blobs"
    (root / "again" / newer).mkdir(parents=True)
    (root / key_of(newer, 0)).rename(root / key_of(newer, 3))
    with store.database.write() as session:
        session.execute(update(BlobRow).where(BlobRow.sha256 == older).values(generation=2))
    store.settle()
    assert store.whole(newer) == b"newer"
    assert store.whole(older) == b"older"
    assert store.put(b"newer") == newer
    assert store.files().count(key_of(newer, 3)) == 1
    assert len(store.files()) == 2


def test_a_bounded_round_counts_the_store_bit_by_bit(store, monkeypatch):
    monkeypatch.setattr("catalog.storage.collector._ROUND_COPIES", 10)
    for number in range(40):
        staged = store.blobs.new_staging_path()
        staged.write_bytes(b"%d" % number)
        store.blobs._put(staged, key_of(digest(b"%d" % number), 0))
    collector = store.collector()
    known = []
    for _ in range(6):
        collector.run(copies=10)
        with store.database.read() as session:
            known.append(Collection(session).holdings(grace_seconds=GRACE).blobs)
    assert known == sorted(known)
    assert 10 <= known[0] < 20
    assert known[-1] == 40


def test_only_one_process_takes_a_round_and_none_at_once(store):
    collectors = [store.collector() for _ in range(4)]
    assert [collector.run_if_due() for collector in collectors] == [None] * 4
    with store.database.write() as session:
        session.execute(update(CollectionRow).values(due_at=0))
    with ThreadPoolExecutor(4) as threads:
        rounds = list(threads.map(lambda collector: collector.run_if_due(), collectors))
    assert sum(done is not None for done in rounds) == 1


def test_counts_are_kept(store):
    store.put(b"12345")
    store.put(b"678")
    store.settle()
    store.put(b"12345")
    store.settle()
    store.put(b"left")
    store.collector().run()
    with store.database.read() as session:
        totals = Totals(session)
        state = Collection(session).state()
    assert totals.of_counter(COLLECTED_BLOBS) == {(): 3}
    assert totals.of_counter(COLLECTED_BYTES) == {(): 13}
    assert (state.blobs, state.bytes, state.unused_bytes) == (1, 4, 0)
    assert state.finished_at is not None


def test_a_round_that_is_cut_off_is_finished_by_the_next(store):
    for number in range(3):
        store.put(b"%d" % number)
    store.age()
    store.collector().run()
    store.age()
    left = []
    for patience in range(5, 40):
        asked = iter(range(patience))
        store.collector(stopped=lambda asked=asked: next(asked, None) is None).run(copies=5)
        left.append(len(store.files()))
    assert left[0] == 3
    assert left[-1] == 0
    assert left == sorted(left, reverse=True)
    assert [row.removed_at is not None for row in store.removals()] == [True] * 3


def test_a_survey_tells_and_changes_nothing(store):
    store.name(store.put(b"needed"))
    store.put(b"unused")
    survey = store.collector().survey().holdings
    assert (survey.blobs, survey.bytes) == (2, 12)
    assert (survey.unused_blobs, survey.unused_bytes) == (1, 6)
    assert (survey.due_blobs, survey.due_bytes, survey.condemned) == (0, 0, 0)
    store.age()
    store.collector().run()
    store.age()
    survey = store.collector().survey().holdings
    assert (survey.due_blobs, survey.due_bytes) == (1, 6)
    assert len(store.files()) == 2
