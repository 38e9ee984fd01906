"""A thousand jobs at once: how fast they are taken and shown, and whether each runs once.

Submits from several threads to a service without workers, asks for the jobs' pages, then starts a worker and waits
until all are done. Compares nothing; prints rates and counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from service import DIGITS, Service, running_service, table
from sqlalchemy import func, select

from catalog.db import Database
from catalog.jobs.states import JobKind
from catalog.jobs.tables import AttemptRow, EventRow, JobRow
from catalog.settings import Settings
from levity.client import Levity

THREADS = 4
QUICK = {"max_seconds": 0.01, "min_rounds": 5, "max_rounds": 5}


def workers(service: Service, *queues: str) -> list[subprocess.Popen[bytes]]:
    environment = {**os.environ, "LEVITY_DATA_DIR": str(service.data_dir)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "workers", "--queue", queue], env=environment, stderr=subprocess.DEVNULL
        )
        for queue in queues
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--gets", type=int, default=4000)
    parser.add_argument("--api-processes", type=int, default=2)
    options = parser.parse_args()
    with running_service("--no-worker", "--api-processes", str(options.api_processes)) as service:
        started = workers(service, "io")
        try:
            with Levity(service.url) as levity:
                model = levity.create_model(DIGITS / "digits-cnn.onnx")
            submit_rate, ids = submit(service.url, model.id, options.jobs)
            get_rate = get(service.url, ids, options.gets)
            start = time.perf_counter()
            started += workers(service, "cpu")
            drain(service.url)
            drained = time.perf_counter() - start
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(60)
        succeeded, twice, results = account(service)
        print(
            table(
                [
                    ("what", "measured", "wanted"),
                    ("API processes", options.api_processes, ""),
                    (f"POST /v1/jobs, {THREADS} clients", f"{submit_rate:.0f}/s", "100/s"),
                    (f"GET /v1/jobs/{{id}}, {THREADS} clients", f"{get_rate:.0f}/s", "500/s"),
                    ("jobs submitted", options.jobs, ""),
                    ("jobs that succeeded", succeeded, options.jobs),
                    ("results published", results, options.jobs),
                    ("jobs run more than once", twice, 0),
                    ("one worker's rate with a prune step", f"{options.jobs / drained:.1f}/s", ""),
                ]
            )
        )


def submit(url: str, model_id: str, count: int) -> tuple[float, list[str]]:
    body = {"model_id": model_id, "pipeline": [{"type": "prune", "amount": 0.5}], "benchmark": QUICK}

    def some(number: int) -> list[str]:
        with httpx.Client(base_url=url) as client:
            return [client.post("/v1/jobs", json=body).raise_for_status().json()["id"] for _ in range(number)]

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        ids = [job for part in pool.map(some, [count // THREADS] * THREADS) for job in part]
    return len(ids) / (time.perf_counter() - start), ids


def get(url: str, ids: list[str], count: int) -> float:
    """Requests a second, asked by as many `curl` processes as there are clients: Python would be the slower side."""
    paths = [f"url = {url}/v1/jobs/{ids[number % len(ids)]}\noutput = /dev/null" for number in range(count // THREADS)]
    config = "\n".join(paths).encode()
    start = time.perf_counter()
    clients = [
        subprocess.Popen(["curl", "-fsS", "-K", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(THREADS)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda client: client.communicate(config), clients))
    if any(client.returncode for client in clients):
        raise SystemExit("a GET failed")
    return len(paths) * THREADS / (time.perf_counter() - start)


def drain(url: str) -> None:
    while True:
        queued = httpx.get(f"{url}/v1/jobs?state=queued&limit=1").json()
        running = httpx.get(f"{url}/v1/jobs?state=running&limit=1").json()
        if not queued["items"] and not running["items"]:
            return
        time.sleep(0.2)


def account(service: Service) -> tuple[int, int, int]:
    """From the database itself: jobs that succeeded, jobs with several attempts, results published."""
    database = Database(Settings(data_dir=service.data_dir).resolved_database_url)
    with database.read() as session:
        mine = JobRow.kind == JobKind.COMPRESS
        succeeded = session.scalar(select(func.count()).where(mine, JobRow.state == "succeeded"))
        attempts = select(AttemptRow.job_id).group_by(AttemptRow.job_id).having(func.count() > 1).subquery()
        twice = session.scalar(select(func.count()).select_from(attempts))
        results = session.scalar(
            select(func.count()).select_from(EventRow).join(JobRow).where(mine, EventRow.type == "succeeded")
        )
    database.dispose()
    return succeeded or 0, twice or 0, results or 0


if __name__ == "__main__":
    main()
