"""How fast bytes go in and out, and what everybody else notices of it.

One gigabyte of random bytes by raw PUT and back by GET over loopback, with curl. Between the rounds the same bytes are
hashed, written and synced by a plain loop on the same disk: the most that this machine could do. Meanwhile a process of
its own asks `/livez` and a job's page over and over.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import subprocess
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Self

import httpx
from service import Service, median, percentile, resident_bytes, running_service, table

from catalog.db import Database
from catalog.jobs.leases import Leases, NewArtifact
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.settings import Settings
from compression.spec import PipelineSpec, Prune

MIB = 2**20


def plain_loop(source: Path, target: Path) -> float:
    start = time.perf_counter()
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(MIB):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def curl(*arguments: str) -> float:
    words = subprocess.run(
        ["curl", "-fsS", "-o", "/dev/null", "-w", "%{time_total}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(words.stdout)


def bystander(url: str, stop: Event, results: multiprocessing.Queue[list[float]]) -> None:
    seconds = []
    with httpx.Client(base_url=url) as client:
        while not stop.is_set():
            for path in ("/livez", "/v1/jobs?limit=1"):
                start = time.perf_counter()
                client.get(path).raise_for_status()
                seconds.append(time.perf_counter() - start)
            time.sleep(0.005)
    results.put(seconds)


def publish(service: Service, sha256: str, size: int) -> str:
    """Path of an artifact with these bytes, published by a job that no worker ran."""
    database = Database(Settings(data_dir=service.data_dir).resolved_database_url)
    with database.write() as session:
        spec = PipelineSpec(steps=(Prune(amount=0.5),)).model_dump(mode="json")
        new = NewJob(kind=JobKind.COMPRESS, queue=Queue.GPU, max_attempts=1, time_limit_seconds=60, spec=spec)
        Jobs(session).add(new)
        claimed = Leases(session).claim(Queue.GPU, owner="benchmark", lease_seconds=60)
        if claimed is None:
            raise LookupError("the job just added")
        artifact = NewArtifact("bytes", sha256, size, "application/octet-stream")
        Leases(session).publish(claimed[0], artifacts=[artifact], result={})
    database.dispose()
    return f"/v1/jobs/{claimed[0].job_id}/artifacts/bytes"


class Watch:
    """The highest resident memory of a process while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak = resident_bytes(pid)
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, resident_bytes(self._pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="levity-bench-") as folder, running_service("--no-worker") as service:
        source = Path(folder) / "bytes"
        api = service.pid_of("uvicorn")
        plain, puts, gets = [], [], []
        stop, results = multiprocessing.Event(), multiprocessing.Queue()
        warm_up = httpx.post(f"{service.url}/v1/uploads", json={}).json()["id"]
        httpx.put(f"{service.url}/v1/uploads/{warm_up}/content", content=b"warm up").raise_for_status()
        before = resident_bytes(api)
        other = multiprocessing.Process(target=bystander, args=(service.url, stop, results))
        other.start()
        with Watch(api) as watch:
            for _ in range(options.rounds):
                with source.open("wb") as file:
                    for _ in range(options.mib):
                        file.write(os.urandom(MIB))
                plain.append(plain_loop(source, Path(folder) / "copy"))
                upload = httpx.post(f"{service.url}/v1/uploads", json={}).json()["id"]
                puts.append(curl("-T", str(source), f"{service.url}/v1/uploads/{upload}/content"))
                stored = httpx.get(f"{service.url}/v1/uploads/{upload}").json()
                gets.append(curl(service.url + publish(service, stored["sha256"], stored["size"])))
        stop.set()
        waits = results.get(timeout=60)
        other.join()
        rates = [options.mib / median(seconds) for seconds in (plain, puts, gets)]
        print(
            table(
                [
                    ("what", "measured", "wanted"),
                    ("plain loop: read, hash, write, sync", f"{rates[0]:.0f} MiB/s", ""),
                    ("raw PUT with sha256 and durable rename", f"{rates[1]:.0f} MiB/s", "250"),
                    ("raw PUT against the plain loop", f"{rates[1] / rates[0]:.2f}x", ""),
                    ("GET of an artifact", f"{rates[2]:.0f} MiB/s", "250"),
                    ("growth of the API's resident memory", f"{(watch.peak - before) / MIB:.0f} MiB", "64"),
                    ("others' wait meanwhile, p50", f"{percentile(waits, 0.5) * 1e3:.1f} ms", ""),
                    ("others' wait meanwhile, p99", f"{percentile(waits, 0.99) * 1e3:.1f} ms", "100"),
                    ("others' wait meanwhile, longest", f"{max(waits) * 1e3:.1f} ms", ""),
                ]
            )
        )


if __name__ == "__main__":
    main()
