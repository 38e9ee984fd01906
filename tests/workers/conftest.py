"""A supervisor with real children, whose pipeline is replaced (`stand_in`)."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from catalog.blobs import Blobs
from catalog.broker import Wakeups, build_celery
from catalog.db import Database
from catalog.jobs.leases import Claim, Leases
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.jobs.tables import JobRow
from catalog.models.repository import Models
from catalog.settings import Settings
from catalog.storage.ledger import DatabaseLedger
from workers.alarm import Alarm
from workers.children import Children
from workers.devices import Device
from workers.lease import Drain
from workers.sandbox import Command, Level, Sandbox
from workers.supervisor import Supervisor

STAND_IN = str(Path(__file__).parent / "stand_in")
PRUNE = {"type": "prune", "amount": 0.5}
MIB = 2**20


class StandInSandbox(Sandbox):
    """A sandbox that also shows the children of tests their replaced pipeline."""

    def wrap(self, arguments: Sequence[str], workdir: Path, device: Device | None = None) -> Command:
        command = super().wrap(arguments, workdir, device)
        environment = command.environment | {
            "PYTHONPATH": os.pathsep.join([STAND_IN, command.environment["PYTHONPATH"]])
        }
        words = list(command.arguments)
        if self.level == "bubblewrap":
            at = words.index("--bind")
            words[at:at] = ["--ro-bind", STAND_IN, STAND_IN]
        return replace(command, arguments=words, environment=environment)


class Bench:
    """One worker's inside, without a broker, on a database of its own."""

    def __init__(self, root: Path, level: Level, template: Path, **settings: object) -> None:
        fast = {
            "heartbeat_seconds": 0.2,
            "lease_seconds": 5,
            "poll_seconds": 0.05,
            "grace_seconds": 0.5,
            "min_free_bytes": 0,
            "job_memory_limit_bytes": 2048 * MIB,
        }
        self.settings = Settings(data_dir=root, **(fast | settings))
        shutil.copyfile(template, self.settings.folder(".") / "levity.db")
        self.database = Database(self.settings.resolved_database_url)
        self.blobs = Blobs.from_settings(self.settings, DatabaseLedger(self.database))
        self.drain = Drain()
        self.sandbox = StandInSandbox(level, self.settings, Queue.CPU)
        self.children = Children(self.sandbox, self.settings.folder("work"), warm=0, refill_at_once=True)
        self.supervisor = Supervisor(
            settings=self.settings,
            database=self.database,
            blobs=self.blobs,
            children=self.children,
            wakeups=Wakeups(build_celery(self.settings)),
            drain=self.drain,
            queue=Queue.CPU,
            memory_limit=self.sandbox.memory_limit,
            threads=0,
            alarm=Alarm(),
        )

    def close(self) -> None:
        self.children.close()
        self.database.dispose()

    def add(
        self,
        do: str = "succeed",
        *,
        pipeline: Sequence[dict[str, object]] = (PRUNE,),
        kind: JobKind = JobKind.COMPRESS,
        time_limit_seconds: float = 60,
        max_attempts: int = 3,
        content: bytes | None = None,
        source: dict[str, object] | None = None,
        **order: object,
    ) -> str:
        """Queue a job on a model that says what its child is to do."""
        content = json.dumps({"do": do, **order}).encode() if content is None else content
        sha256, size = self.blobs.take_in(iter([content]))
        with self.database.write() as session:
            files = [{"name": "model.onnx", "sha256": sha256, "size": size}]
            model = Models(session).add(name="m", files=files, source=source)
            new = NewJob(
                kind=kind,
                queue=Queue.CPU,
                max_attempts=max_attempts,
                time_limit_seconds=time_limit_seconds,
                model_id=model.id,
                spec={"steps": list(pipeline)} if kind is JobKind.COMPRESS else {},
            )
            return Jobs(session).add(new).id

    def claim(self, owner: str = "worker") -> tuple[Claim, JobRow]:
        with self.database.write() as session:
            claimed = Leases(session).claim(Queue.CPU, owner=owner, lease_seconds=self.settings.lease_seconds)
        assert claimed is not None
        return claimed

    def run(self, do: str = "succeed", **order: object) -> JobRow:
        """Queue a job, and run its first attempt to its end."""
        job_id = self.add(do, **order)
        self.supervisor.run(*self.claim())
        return self.job(job_id)

    def start(self, do: str, **order: object) -> tuple[str, threading.Thread]:
        """Queue a job, and return once its child is at work."""
        job_id = self.add(do, **order)
        thread = threading.Thread(target=self.supervisor.run, args=self.claim())
        thread.start()
        self.wait_for_phase(job_id, "benchmarking")
        return job_id, thread

    def wait_for_phase(self, job_id: str, phase: str) -> None:
        for _ in range(2000):
            if self.job(job_id).phase == phase:
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"the job never came to phase {phase}")

    def job(self, job_id: str) -> JobRow:
        with self.database.read() as session:
            return Jobs(session).get(job_id)

    def events(self, job_id: str) -> list[tuple[str, dict[str, object]]]:
        with self.database.read() as session:
            return [(event.type, event.data) for event in Jobs(session).events(job_id)]

    def artifact(self, job_id: str, name: str = "model.onnx") -> bytes:
        with self.database.read() as session:
            sha256 = Jobs(session).artifact(job_id, name).sha256
        return b"".join(self.blobs.read(sha256))

    def assert_tidy(self) -> None:
        """No folder of a job is left."""
        assert list(self.settings.folder("work").iterdir()) == []
        assert list(self.settings.folder("staging").iterdir()) == []


def levels() -> list[Level]:
    return ["rlimits", "bubblewrap"]


def require_level(level: Level, root: Path) -> None:
    reason = Sandbox(level, Settings(data_dir=root), Queue.CPU).why_not()
    if reason is not None:
        pytest.skip(f"{level} does not work here: {reason}")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with all tables, to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "levity.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.dispose()
    return path


@pytest.fixture
def bench(tmp_path: Path, template: Path) -> Iterator[Bench]:
    """A worker's inside with resource limits alone."""
    bench = Bench(tmp_path / "data", "rlimits", template)
    yield bench
    bench.close()


@pytest.fixture(params=levels())
def bench_of_each_level(tmp_path: Path, template: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A worker's inside at each level of confinement in turn."""
    require_level(request.param, tmp_path)
    bench = Bench(tmp_path / "data", request.param, template)
    yield bench
    bench.close()
