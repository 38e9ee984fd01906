"""Collectors and adopters in every order of their steps, with no grace period to save anyone, and with many at once."""

from __future__ import annotations

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import select, update

from catalog.blobs import Blobs
from catalog.db import Database
from catalog.errors import BytesGone, NotFound
from catalog.models.repository import Models
from catalog.storage.collection import MEMORY_SECONDS, Collection
from catalog.storage.collector import Collector
from catalog.storage.ledger import DatabaseLedger, hold
from catalog.storage.references import named
from catalog.storage.tables import BlobRow, RemovalRow
from catalog.totals.metrics import COLLECTED_BLOBS
from catalog.totals.repository import Totals
from catalog.uploads.repository import Uploads
from tests.catalog.stepping import Stepped, at, orders
from tests.catalog.storing import Store

# Hundreds of small transactions each, on whatever machine.
pytestmark = pytest.mark.timeout(600)

STATES = ("absent", "unused", "marked", "condemned", "collected")
"""What becomes of a blob before the race begins."""


class SteppedLedger(DatabaseLedger):
    def generation(self, sha256):
        at("look up")
        return super().generation(sha256)

    def note_stored(self, sha256, **values):
        at("note")
        return super().note_stored(sha256, **values)


class SteppedBlobs(Blobs):
    def _put(self, path, key):
        at("put")
        super()._put(path, key)

    def remove(self, sha256, generation):
        at("remove")
        super().remove(sha256, generation)
        at("note removed")


class SteppedCollector(Collector):
    def pass_over(self):
        """The steps that matter to blobs."""
        self._mark_unused()
        self._condemn(None)
        self._remove(None)

    def _mark_unused(self):
        at("mark")
        super()._mark_unused()

    def _condemn(self, limit):
        at("condemn")
        super()._condemn(limit)


class Races(Store):
    def __init__(self, database, root, url=""):
        super().__init__(database, root, url=url)
        self.settings = self.settings.model_copy(update={"collect_grace_seconds": -1.0})
        self.blobs = SteppedBlobs.from_settings(self.settings, SteppedLedger(database))

    def collector(self):
        return SteppedCollector(self.settings, self.database, self.blobs)

    def prepare(self, content, state):
        """Bring the blob into a state; returns its digest."""
        sha256 = self.put(content)
        if state == "absent":
            self.blobs.delete(sha256)
            with self.database.write() as session:
                session.delete(session.get(BlobRow, sha256))
        if state in ("marked", "condemned", "collected"):
            self.collector()._mark_unused()
            assert self.row(sha256).unused_since is not None
        if state in ("condemned", "collected"):
            self.collector()._condemn(None)
            assert not self.row(sha256).live
        if state == "collected":
            self.collector()._remove(None)
            assert not self.blobs.exists(sha256)
        return sha256

    def adopt(self, content, tries=None):
        """What every adopter does: store, then name, and all of it again when the collector was first."""
        while True:
            sha256 = self.put(content)
            at("name")
            if tries is not None:
                tries.append(1)
            try:
                return self.name(sha256)
            except BytesGone:
                continue

    def come_and_go(self, seed):
        """Store and name a few blobs many times, by ways that chance decides; those that are named in the end."""
        chance = random.Random(seed)
        mine = []
        for _ in range(25):
            content = b"%d" % chance.randrange(4)
            way = chance.choice(["dataset", "model", "upload", "step", "external data"])
            with suppress(BytesGone):
                sha256 = self.put(content)
                mine.append((sha256, content, self.name(sha256, way), way))
            assert [self.whole(sha256) for sha256, *_ in mine] == [content for _, content, *_ in mine]
            if len(mine) > 2 or chance.random() < 0.5:
                self.give_back(mine)
        return mine

    def give_back(self, mine):
        for *_, row_id, way in mine:
            self.unname(row_id, way)
        mine.clear()


@pytest.fixture
def races(database, tmp_path):
    return Races(database, tmp_path)


def ready(function):
    """The function in a thread, at its first point."""
    stepped = Stepped(function)
    assert stepped.step()
    return stepped


@pytest.mark.parametrize("state", STATES)
def test_every_order_of_an_adopter_and_a_collector(races, state):
    try_every_order(races, state)


def test_every_order_on_an_object_store(s3, monkeypatch, tmp_path):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    database = Database(f"sqlite:///{tmp_path}/levity.db")
    database.migrate()
    try_every_order(Races(database, tmp_path, f"s3://{s3.new_bucket()}/blobs"), "marked")
    database.dispose()


def try_every_order(races, state):
    digests = {}
    tries = []
    for order in orders(4, 4):
        content = f"{state} {order}".encode()
        sha256 = races.prepare(content, state)
        adopter, collector = (
            ready(lambda content=content: races.adopt(content, tries)),
            ready(races.collector().pass_over),
        )
        for who in order:
            {"a": adopter, "b": collector}[who].step()
        for stepped in (adopter, collector) if order.endswith("a") else (collector, adopter):
            stepped.finish()
        races.collector().pass_over()
        assert races.whole(sha256) == content, (order, adopter.trace, collector.trace)
        digests[sha256] = content
    races.collector().run()
    assert {sha256: races.whole(sha256) for sha256 in digests} == digests
    if state in ("unused", "marked"):
        assert len(tries) > len(digests), "in some orders the adopter came too late, and began again"


@pytest.mark.parametrize("point", ["condemn", "remove", "note removed"])
def test_a_collector_that_is_stopped_and_resumed_after_all_others(races, point):
    digests = {}
    for order in orders(4, 4):
        content = f"{point} {order}".encode()
        sha256 = races.prepare(content, "marked")
        zombie = ready(races.collector().pass_over)
        while zombie.trace[-1] != point:
            assert zombie.step()
        adopter, other = ready(lambda content=content: races.adopt(content)), ready(races.collector().pass_over)
        for who in order:
            {"a": adopter, "b": other}[who].step()
        other.finish()
        adopter.finish()
        zombie.finish()
        assert races.whole(sha256) == content, (order, adopter.trace, other.trace, zombie.trace)
        digests[sha256] = content
    races.collector().run()
    assert {sha256: races.whole(sha256) for sha256 in digests} == digests


@pytest.mark.parametrize("state", STATES)
def test_an_adopter_that_dies_anywhere_leaves_nothing(races, state):
    for point in ("look up", "put", "note", "name"):
        if point == "put" and state in ("unused", "marked"):
            continue  # the bytes are there
        content = point.encode()
        races.prepare(content, state)
        adopter = ready(lambda content=content: races.adopt(content))
        while adopter.trace[-1] != point:
            assert adopter.step()
        # It is never resumed.
        for _ in range(3):
            races.collector().run()
            races.age(10)
        assert races.files() == [], adopter.trace


@pytest.mark.parametrize("point", ["mark", "condemn", "remove", "note removed"])
def test_a_collector_that_dies_anywhere_is_followed_by_another(races, point):
    sha256 = races.prepare(b"x", "marked" if point != "mark" else "unused")
    dying = ready(races.collector().pass_over)
    while dying.trace[-1] != point:
        assert dying.step()
    races.collector().pass_over()
    assert races.files() == []
    with races.database.read() as session:
        assert Totals(session).of_counter(COLLECTED_BLOBS) == {(): 1}
    races.adopt(b"x")
    assert races.whole(sha256) == b"x"
    dying.finish()
    assert races.whole(sha256) == b"x"
    with races.database.read() as session:
        assert Totals(session).of_counter(COLLECTED_BLOBS) == {(): 1}


def test_a_collector_that_is_stopped_as_it_removes_what_was_removed_long_ago(races):
    sha256 = races.prepare(b"x", "collected")
    with races.database.write() as session:
        session.execute(update(RemovalRow).values(removed_at=RemovalRow.removed_at - MEMORY_SECONDS))
    zombie = ready(races.collector()._forget_removals)
    assert zombie.trace == ["remove"]
    races.collector()._forget_removals()
    assert races.removals() == []
    races.adopt(b"x")
    zombie.finish()
    assert races.whole(sha256) == b"x"


# Within transactions


def test_a_collector_does_not_decide_before_who_names_the_blob_has(races):
    sha256 = races.prepare(b"x", "marked")
    with ThreadPoolExecutor(1) as threads:
        with races.database.write() as session:
            hold(session, [sha256])
            condemning = threads.submit(races.collector()._condemn, None)
            # PostgreSQL skips the row, SQLite waits for the end of this transaction.
            time.sleep(0.3)
            Uploads(session).add(filename="f", size=None, sha256=None)
            model = Models(session).add(name="m", files=[{"name": "f", "sha256": sha256, "size": 1}])
        condemning.result(60)
    assert races.row(sha256).live
    races.collector().pass_over()
    assert races.whole(sha256) == b"x"
    races.unname(model.id, "model")


def test_who_names_a_blob_waits_for_a_collector_that_decides(races):
    sha256 = races.prepare(b"x", "marked")
    with ThreadPoolExecutor(1) as threads:
        with races.database.write() as session:
            assert Collection(session).condemn(grace_seconds=-1, limit=10) == 1
            naming = threads.submit(races.name, sha256)
            time.sleep(0.3)
            assert not naming.done()
        with pytest.raises(BytesGone):
            naming.result(60)
    with races.database.read() as session:
        assert named(session) == set()


def test_a_collector_that_dies_within_its_decision_decided_nothing(races):
    sha256 = races.prepare(b"x", "marked")
    with ThreadPoolExecutor(1) as threads:

        def decide():
            with races.database.write() as session:
                assert Collection(session).condemn(grace_seconds=-1, limit=10) == 1
                naming.append(threads.submit(races.name, sha256))
                time.sleep(0.3)
                raise ConnectionError

        naming = []
        with pytest.raises(ConnectionError):
            decide()
        naming[0].result(60)
    races.collector().pass_over()
    assert races.whole(sha256) == b"x"


def test_a_name_that_moves_between_tables_is_seen_in_one_of_them(races):
    """A model is made from an upload that is deleted in the same moment, again and again, while collectors look."""
    over = threading.Event()

    def collect():
        while not over.is_set():
            races.collector().pass_over()

    def move(number):
        content = b"%d" % number
        while True:
            try:
                upload = races.name(races.put(content), "upload")
                break
            except BytesGone:
                continue
        with races.database.write() as session:
            row = Uploads(session).get_complete(upload)
            files = [{"name": "f", "sha256": row.sha256, "size": 1}]
            Models(session).add(name="m", files=files)
        races.unname(upload, "upload")
        assert races.whole(row.sha256) == content
        return row.sha256, content

    collecting = [threading.Thread(target=collect) for _ in range(2)]
    for thread in collecting:
        thread.start()
    with ThreadPoolExecutor(4) as threads:
        moved = list(threads.map(move, range(60)))
    over.set()
    for thread in collecting:
        thread.join(60)
    races.collector().pass_over()
    for sha256, content in moved:
        assert races.whole(sha256) == content


def test_many_at_once(races):
    """Adopters, deleters and collectors over few blobs, with all chance to meet."""
    over = threading.Event()

    def collect():
        while not over.is_set():
            races.collector().run()

    collecting = [threading.Thread(target=collect) for _ in range(2)]
    for thread in collecting:
        thread.start()
    with ThreadPoolExecutor(4) as threads:
        kept = [entry for mine in threads.map(races.come_and_go, range(4)) for entry in mine]
    over.set()
    for thread in collecting:
        thread.join(60)
        assert not thread.is_alive()
    for sha256, content, _, _ in kept:
        assert races.whole(sha256) == content
    races.give_back(kept)
    for _ in range(3):
        races.collector().run()
    with races.database.read() as session:
        assert named(session) <= {"0" * 64}
        assert [row.sha256 for row in session.scalars(select(BlobRow).where(BlobRow.live))] in ([], ["0" * 64])
    assert races.files() == []


def test_a_copy_is_made_of_another_copy(races, monkeypatch, tmp_path):
    sha256 = races.prepare(b"x", "condemned")
    races.adopt(b"x")
    assert len(races.files()) == 2, "the first copy is still there, and is found first"
    copyfile = shutil.copyfile

    def late(source, target):
        races.collector()._remove(None)
        monkeypatch.undo()
        copyfile(source, target)

    monkeypatch.setattr("shutil.copyfile", late)
    races.blobs.fetch(sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x"
    with pytest.raises(FileNotFoundError):
        races.blobs.fetch(sha256, tmp_path / "no such folder" / "copy")


def test_a_reader_goes_on_with_another_copy(races, monkeypatch):
    monkeypatch.setattr("catalog.blobs.CHUNK_BYTES", 2)
    sha256 = races.prepare(b"012345", "marked")
    chunks = races.blobs.read(sha256, 1, 6)
    assert next(chunks) == b"12"
    races.collector().pass_over()
    races.put(b"012345")
    assert next(chunks) == b"34"
    assert b"".join(chunks) == b"5"
    chunks = races.blobs.read(sha256)
    assert next(chunks) == b"01"
    races.blobs.delete(sha256)
    with pytest.raises(NotFound):
        next(chunks)
