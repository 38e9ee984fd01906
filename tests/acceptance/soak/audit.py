"""What is left when the noise is over: every job, every event, every process, file and lease is accounted for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Self

from sqlalchemy import select

from catalog.jobs.repository import Jobs
from catalog.jobs.states import TERMINAL, AttemptOutcome, JobState
from catalog.jobs.tables import ArtifactRow, AttemptRow, JobRow
from catalog.storage.collector import Collector
from catalog.storage.references import named
from catalog.storage.verification import verify
from catalog.webhooks.tables import DeliveryRow
from catalog.workers.tables import WorkerRow
from tests.acceptance.harness import Process, Service
from tests.acceptance.processes import eventually
from tests.acceptance.soak.load import Order

MIB = 2**20


def wait_until_all_has_ended(service: Service, seconds: float = 900) -> None:
    """Also inspections, and deliveries under way."""

    def unfinished() -> list[str]:
        with service.database.read() as session:
            return [
                *session.scalars(select(JobRow.id).where(JobRow.state.not_in(TERMINAL))),
                *session.scalars(select(DeliveryRow.id).where(DeliveryRow.state == "sending")),
            ]

    eventually(lambda: not unfinished(), seconds=seconds, pause=0.5, what=f"all has ended: {unfinished()}")


def faults_of_jobs(service: Service, orders: Iterable[Order]) -> list[str]:
    """Jobs that are lost, that came twice, or that ended otherwise than they should."""
    faults = []
    by_id = {order.job_id: order for order in orders}
    with service.database.read() as session:
        rows = {row.id: row for row in session.scalars(select(JobRow)) if "soak" in row.labels}
        attempts: dict[str, list[AttemptRow]] = {}
        for attempt in session.scalars(select(AttemptRow).order_by(AttemptRow.number)):
            attempts.setdefault(attempt.job_id, []).append(attempt)
        artifacts: dict[str, list[ArtifactRow]] = {}
        for artifact in session.scalars(select(ArtifactRow)):
            artifacts.setdefault(artifact.job_id, []).append(artifact)
        events = {job_id: Jobs(session).events(job_id, limit=100_000) for job_id in rows}
    faults += [f"lost: {order}" for order in by_id.values() if order.job_id not in rows]
    faults += [f"twice: job {job_id} that nobody was told of" for job_id in rows.keys() - by_id.keys()]
    for job_id, row in rows.items():
        made, files = attempts.get(job_id, []), artifacts.get(job_id, [])
        ends = [event.type for event in events[job_id] if event.type in set(TERMINAL)]
        published = [one.number for one in made if one.outcome == AttemptOutcome.SUCCEEDED]
        succeeded = row.state == JobState.SUCCEEDED
        order = by_id.get(job_id)
        checks = {
            "ended as it should": order is None or {row.state, order.state} <= order.expected,
            "one end": ends == [row.state] and events[job_id][-1].type == row.state,
            "events without a gap": [event.seq for event in events[job_id]] == list(range(1, row.last_event + 1)),
            "attempts without a gap": [one.number for one in made] == list(range(1, row.attempt + 1)),
            "attempts ended": all(one.ended_at is not None for one in made),
            "one result": published == ([row.attempt] if succeeded else []),
            "files of that attempt": {file.attempt for file in files} == ({row.attempt} if succeeded else set()),
            "files are there": all(service.blobs.exists(file.sha256) for file in files),
            "no lease": row.owner is None and row.lease_until is None,
        }
        faults += [f"job {job_id} ({row.state}, {row.error}): not {what}" for what, good in checks.items() if not good]
    return faults


def faults_of_deliveries(service: Service, received: Iterable[Mapping[str, str]]) -> tuple[list[str], Counter[str]]:
    """Ends of jobs that were told not once, and deliveries that hang; how many deliveries are in which state.

    Args:
        service: Its database is looked into.
        received: The headers of what the receiver got.
    """
    with service.database.read() as session:
        ended = {row.id: row.state for row in session.scalars(select(JobRow)) if "soak" in row.labels}
        rows = list(session.scalars(select(DeliveryRow)))
    told = Counter(row.job_id for row in rows if row.type in {f"job.{state}" for state in TERMINAL})
    arrived = {headers["webhook-id"] for headers in received}
    faults = [
        f"job {one} {state}: its end was told {told[one]} times" for one, state in ended.items() if told[one] != 1
    ]
    for row in rows:
        if row.state in ("failed", "sending"):
            faults.append(f"delivery {row.id} of {row.type} is {row.state}")
        if row.state == "delivered" and row.id not in arrived:
            faults.append(f"delivery {row.id} is delivered, and nothing arrived")
    return faults, Counter(row.state for row in rows)


def leaks(service: Service, temporary: Path) -> list[str]:
    """Processes, files and rows that belong to nobody any more; `temporary` was everybody's TMPDIR."""
    service.assert_tidy()
    live = sum(worker.alive for worker in service.workers)

    def registered() -> int:
        with service.database.read() as session:
            return len(list(session.scalars(select(WorkerRow.id))))

    eventually(lambda: registered() == live, seconds=60, what="dead workers are forgotten")
    return [f"temporary file {path}" for path in temporary.rglob("*")]


def leftover_bytes(service: Service) -> tuple[list[str], int, int]:
    """Bytes that are missing, wrong, or left when nothing names them; how many blobs are named, and were collected."""
    verdict = verify(service.database, service.blobs)
    faults = [f"blob {sha256} is missing" for sha256 in verdict.missing]
    faults += [f"blob {sha256} is not what its name says" for sha256 in verdict.corrupt]
    settings = service.settings.model_copy(update={"collect_grace_seconds": 0.0})
    collector = Collector(settings, service.database, service.blobs)
    collected = sum(collector.run()["blobs"] for _ in range(4))
    if not verify(service.database, service.blobs).sound:
        faults.append("collecting took blobs that are named")
    with service.database.read() as session:
        named_there = len(named(session))
    if (stored := stored_blobs(service)) != named_there:
        faults.append(f"{stored} blobs are stored, {named_there} are named")
    return faults, named_there, collected


def stored_blobs(service: Service) -> int:
    """How many blobs there is a copy of in the store."""
    return len({copy.sha256 for _, copies in service.blobs.copies() for copy in copies})


class Memory:
    """Samples of what processes hold: resident bytes and descriptors."""

    def __init__(self, processes: Mapping[str, Process], seconds: float) -> None:
        self._processes = processes
        self._pause = max(1.0, seconds / 400)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")
        self.samples: dict[str, list[tuple[int, int]]] = {name: [] for name in processes}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth(self, name: str) -> tuple[float, float, int, int]:
        """MiB and descriptors: the median of the second fifth of the time, and that of the last."""
        samples = self.samples[name]
        fifth = max(1, len(samples) // 5)
        early, late = samples[fifth : 2 * fifth] or samples, samples[-fifth:]
        (first, first_files), (last, last_files) = (
            [median(kind) for kind in zip(*part, strict=True)] for part in (early, late)
        )
        return first / MIB, last / MIB, int(first_files), int(last_files)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            for name, process in self._processes.items():
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
                except FileNotFoundError:
                    continue
                resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
                self.samples[name].append((resident, files))


def now() -> str:
    return time.strftime("%H:%M:%S")
