"""Hostile files through the whole service: refused with a code, or of use, and never more than that.

`LEVITY_HOSTILE_EVERY=1` sends every file to every backend; unless it is set, PostgreSQL and Redis get every third.
`LEVITY_HOSTILE_ONLY=npz` sends those whose names begin so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.acceptance.backends import Embedded
from tests.acceptance.harness import BRIEF, GIB, PRUNE
from tests.acceptance.processes import descendants
from tests.hostile.case import Case
from tests.hostile.corpus import cases
from tests.hostile.onnx_files import MARKUP
from tests.hostile.watch import watching

MEMORY = 4 * GIB
MIB = 2**20


@dataclass
class Sent:
    """A case on its way."""

    case: Case
    path: str
    outcome: str = ""
    message: str = ""
    job: str | None = None


@dataclass
class Peaks:
    """Largest resident memory (bytes) seen of the API, the workers and their children."""

    api: int = 0
    workers: int = 0
    children: int = 0
    samples: int = field(default=0, repr=False)


@contextmanager
def measuring(service, workers) -> Iterator[Peaks]:
    """Look at the memory of all processes every now and then."""
    peaks = Peaks()
    over = threading.Event()

    def look():
        while not over.wait(0.1):
            peaks.api = max(peaks.api, resident(service.api.pid))
            for worker in workers:
                peaks.workers = max(peaks.workers, resident(worker.pid))
                peaks.children = max([peaks.children, *(resident(one.pid) for one in descendants(worker.pid))])
            peaks.samples += 1

    thread = threading.Thread(target=look)
    thread.start()
    yield peaks
    over.set()
    thread.join()


def resident(pid: int) -> int:
    """Peak resident memory of a process in bytes; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def upload(http: httpx.Client, content: bytes, filename: str) -> str:
    created = http.post("/v1/uploads", json={"filename": filename}).raise_for_status().json()["id"]
    http.put(f"/v1/uploads/{created}/content", content=content).raise_for_status()
    return created


def send(http: httpx.Client, case: Case, lure) -> Sent:
    beside = [{"name": name, "upload_id": upload(http, make(lure), name)} for name, make in case.beside.items()]
    body = {"upload_id": upload(http, case.content(lure), case.filename), **case.body}
    if beside:
        body["external_data"] = beside
    answer = http.post(f"/v1/{case.kind}", json=body)
    assert answer.status_code == 202, (case.name, answer.text)
    return Sent(case, answer.headers["location"])


def wait(http: httpx.Client, sent: list[Sent], seconds: float) -> None:
    """Wait until all are inspected, and note what came of each."""
    deadline = time.monotonic() + seconds
    for one in sent:
        while True:
            found = http.get(one.path).raise_for_status().json()
            if found["state"] != "inspecting":
                break
            assert time.monotonic() < deadline, f"{one.case.name} is not inspected"
            time.sleep(0.2)
        error = found["error"]
        one.outcome = "accepted" if error is None else error["code"]
        one.message = "" if error is None else error["message"]


def run_jobs(service, http: httpx.Client, sent: list[Sent], seconds: float) -> dict[str, str]:
    """Compress what was accepted and is to be run; outcomes by name."""
    running = {}
    for one in sent:
        if one.outcome == "accepted" and one.case.job is not None:
            body = {
                "model_id": one.path.rpartition("/")[2],
                "pipeline": list(PRUNE),
                "benchmark": BRIEF,
                "time_limit_seconds": 600 if "succeeded" in one.case.job else 60,
                "max_attempts": 1,
            }
            one.job = http.post("/v1/jobs", json=body).raise_for_status().json()["id"]
            running[one.case.name] = one
    outcomes = {}
    for name, one in running.items():
        job = service.client.wait(one.job, timeout=seconds)
        outcomes[name] = str(job.state) if job.error is None else job.error["code"]
    return outcomes


@pytest.fixture
def workers(service):
    """Of little memory, and of a lease that survives children which fill the machine's; gone afterwards."""
    service.stop_workers()
    service.workers.clear()
    settings = {"job_memory_limit_bytes": MEMORY, "lease_seconds": 30}
    yield [service.start_worker(queue, **settings) for queue in ("io", "io", "cpu")]
    service.stop_workers()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_hostile_files(service, inputs, workers, tmp_path):
    default = "1" if isinstance(service.backend, Embedded) else "3"
    chosen = [case for case in cases() if case.name.startswith(os.environ.get("LEVITY_HOSTILE_ONLY", ""))]
    everything = chosen[:: int(os.environ.get("LEVITY_HOSTILE_EVERY", default))]
    with (
        watching(tmp_path) as watch,
        measuring(service, workers) as peaks,
        httpx.Client(base_url=service.client.base_url, trust_env=False, timeout=120) as http,
    ):
        before = watch.happened()
        sent = [send(http, case, watch.lure) for case in everything]
        wait(http, sent, 1800)
        outcomes = run_jobs(service, http, sent, 900)
        happened = watch.happened()
        pages = [artifact(http, one) for one in sent if outcomes.get(one.case.name) == "succeeded"]
        told = [http.get(one.path).text for one in sent] + pages
        assert watch.lure.canary.read_text() == watch.lure.secret
        assert not [text for text in told if watch.lure.secret in text]
    assert (before, happened) == (set(), set())
    wrong = {
        one.case.name: (one.outcome, one.message) for one in sent if one.outcome not in (one.case.codes or {"accepted"})
    }
    assert wrong == {}
    unexpected = {
        one.case.name: outcomes[one.case.name]
        for one in sent
        if one.case.name in outcomes and outcomes[one.case.name] not in one.case.job
    }
    assert unexpected == {}
    # The same processes are there, none has grown, and they take other work.
    assert service.api.alive
    assert all(worker.alive for worker in workers)
    assert not [page for page in pages if MARKUP in page]
    assert peaks.samples
    assert peaks.api < 300 * MIB, peaks
    assert peaks.workers < 300 * MIB, peaks
    assert peaks.children < MEMORY, peaks
    inputs.assert_healthy()


def artifact(http: httpx.Client, one: Sent) -> str:
    """The report, as a browser gets it."""
    return http.get(f"/v1/jobs/{one.job}/artifacts/report.html").raise_for_status().text
