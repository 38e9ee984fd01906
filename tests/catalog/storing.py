"""A store with its ledger and its collector, and shortcuts to what services do with them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlalchemy import select, update

from catalog.blobs import Blobs
from catalog.datasets.repository import Datasets
from catalog.db import Database
from catalog.ids import new_id
from catalog.jobs.leases import Leases, NewArtifact
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.jobs.step_cache import FinishedSteps
from catalog.jobs.tables import ArtifactRow
from catalog.models.repository import Models
from catalog.settings import Settings
from catalog.storage.collector import Collector
from catalog.storage.ledger import DatabaseLedger
from catalog.storage.tables import BlobRow, RemovalRow
from catalog.uploads.repository import Uploads

GRACE = 1000.0
WAYS = ("upload", "dataset", "model", "external data", "weights", "inspected", "artifact", "step")
"""The ways in which rows come to name a blob."""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Store:
    def __init__(self, database: Database, root: Path, *, url: str = "", **settings: object) -> None:
        self.database = database
        self.settings = Settings(
            data_dir=root, database_url=database.url, store_url=url, collect_grace_seconds=GRACE, **settings
        )
        self.blobs = Blobs.from_settings(self.settings, DatabaseLedger(database))

    def collector(self, **more: object) -> Collector:
        return Collector(self.settings, self.database, self.blobs, **more)

    def put(self, content: bytes) -> str:
        return self.blobs.take_in(iter([content]))[0]

    def name(self, sha256: str, way: str = "dataset") -> str:  # noqa: PLR0911 - a table of ways
        """Have a row name a blob; returns what `unname` takes."""
        with self.database.write() as session:
            file = {"name": "f", "sha256": sha256, "size": 1}
            if way == "upload":
                uploads = Uploads(session)
                row = uploads.add(filename="f", size=None, sha256=None)
                uploads.complete(row.id, size=1, sha256=sha256)
                return row.id
            if way == "dataset":
                return Datasets(session).add(name="d", sha256=sha256, size=1, images=None).id
            if way == "model":
                return Models(session).add(name="m", files=[file]).id
            if way == "external data":
                return Models(session).add(name="m", files=[file | {"sha256": "0" * 64}, file]).id
            if way == "weights":
                row = Models(session).add(name="m", files=[file], source={"architecture": {}, "file": file})
                row.files = [file | {"sha256": "0" * 64}]
                return row.id
            if way == "step":
                key = new_id("job")
                FinishedSteps(session, "default").put(key, [file])
                return key
            model = Models(session).add(name="m", files=[file | {"sha256": "0" * 64}])
            kind = JobKind.COMPRESS if way == "artifact" else JobKind.INSPECT_MODEL
            new = NewJob(kind=kind, queue=Queue.CPU, max_attempts=1, time_limit_seconds=60, model_id=model.id)
            job = Jobs(session).add(new)
            claim, _ = Leases(session).claim(Queue.CPU, owner="w", lease_seconds=60)
            assert claim.job_id == job.id
            if way == "artifact":
                Leases(session).publish(claim, artifacts=[NewArtifact("f", sha256, 1, "text/plain")], result={})
                return job.id
            Leases(session).publish_inspection(claim, summary={}, files=[file])
            return model.id

    def unname(self, row_id: str, way: str = "dataset") -> None:
        with self.database.write() as session:
            if way == "upload":
                Uploads(session).delete(row_id)
            elif way == "dataset":
                Datasets(session).delete(Datasets(session).get(row_id))
            elif way == "artifact":
                Jobs(session).delete(row_id)
            elif way == "step":
                FinishedSteps(session, "default").drop(row_id)
            else:
                Models(session).delete(Models(session).get(row_id))

    def age(self, seconds: float = 1.5 * GRACE, *, digests: list[str] | None = None) -> None:
        """Let time pass, for the ledger."""
        values = {
            "stored_at": BlobRow.stored_at - seconds,
            "unused_since": BlobRow.unused_since - seconds,
        }
        with self.database.write() as session:
            where = [BlobRow.sha256.in_(digests)] if digests is not None else []
            session.execute(update(BlobRow).where(*where).values(**values).execution_options(synchronize_session=False))

    def settle(self) -> None:
        """Rounds and time enough that all goes that can."""
        for _ in range(3):
            self.collector().run()
            self.age()
        self.collector().run()

    def whole(self, sha256: str) -> bytes:
        return b"".join(self.blobs.read(sha256))

    def row(self, sha256: str) -> BlobRow | None:
        with self.database.read() as session:
            return session.get(BlobRow, sha256)

    def removals(self) -> list[RemovalRow]:
        with self.database.read() as session:
            return list(session.scalars(select(RemovalRow)))

    def artifacts(self) -> list[ArtifactRow]:
        with self.database.read() as session:
            return list(session.scalars(select(ArtifactRow)))

    def files(self) -> list[str]:
        """Everything that a local store holds."""
        root = self.settings.root / "blobs"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
