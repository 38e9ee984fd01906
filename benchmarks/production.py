"""PostgreSQL and Redis beside the embedded default, with two API processes.

`rates`: how many submissions and look-ups a second two API processes answer, asked by `curl` processes.
`queued`: ten thousand queued jobs: how fast their pages are listed and in which order three claimers take them; the
claimers speak the workers' protocol and do no work, which would take hours.
`overhead`: the same job by turns on SQLite and files, on PostgreSQL and Redis, and by the library alone.

Needs PostgreSQL and Redis at LEVITY_BENCH_POSTGRES and LEVITY_BENCH_REDIS, in which it makes a database and empties a
number of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import psycopg
import redis
from job_overhead import CALIBRATION, EVALUATION, MODEL, in_library, in_service, spread
from queueing import workers
from service import DIGITS, Service, median, running_service, table
from sqlalchemy import select

from catalog.db import Database
from catalog.jobs.leases import Leases
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.jobs.tables import AttemptRow, JobRow
from compression.spec import BenchmarkSpec, PipelineSpec, QuantizeStatic
from levity.client import Levity

POSTGRES = os.environ.get("LEVITY_BENCH_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("LEVITY_BENCH_REDIS", "redis://127.0.0.1:6379/15")
CLIENTS = 16
CLAIMERS = 3


@contextmanager
def engines() -> Iterator[dict[str, str]]:
    """Settings of a service on a new database and an empty broker."""
    name = f"levity_bench_{secrets.token_hex(4)}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection, redis.Redis.from_url(REDIS) as broker:
        connection.execute(f"CREATE DATABASE {name}")
        broker.flushdb()
        try:
            url = POSTGRES.replace("postgresql://", "postgresql+psycopg://", 1).rpartition("/")[0]
            yield {"LEVITY_DATABASE_URL": f"{url}/{name}", "LEVITY_BROKER_URL": REDIS, "LEVITY_LOG_LEVEL": "WARNING"}
        finally:
            broker.flushdb()
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "queued", "overhead"))
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with engines() as environment:
        if options.what == "rates":
            rows = rates(environment, options.requests, options.rounds)
        elif options.what == "queued":
            rows = queued(environment, options.jobs)
        else:
            rows = overhead(environment, options.rounds)
    print(table(rows))


def rates(environment: dict[str, str], requests: int, rounds: int) -> list[tuple[object, ...]]:
    posts, gets = [], []
    with running_service("--no-worker", "--api-processes", "2", **environment) as service:
        body = json.dumps({"model_id": new_model(service, environment), "pipeline": [{"type": "prune", "amount": 0.5}]})
        header = "content-type: application/json"
        for _ in range(rounds):
            post = f"url = {service.url}/v1/jobs\nheader = {json.dumps(header)}\ndata = {json.dumps(body)}"
            posts.append(rate([post] * (requests // CLIENTS)))
            page = httpx.get(f"{service.url}/v1/jobs?limit=200").raise_for_status().json()
            look_ups = [f"url = {service.url}/v1/jobs/{job['id']}" for job in page["items"]]
            gets.append(rate((look_ups * (1 + requests // len(look_ups)))[: requests // CLIENTS]))
    return [
        (f"two API processes, {CLIENTS} clients, {rounds} rounds", "median", "lowest", "highest", "wanted"),
        ("POST /v1/jobs", *(f"{value:.0f}/s" for value in (median(posts), min(posts), max(posts))), "300/s"),
        ("GET /v1/jobs/{id}", *(f"{value:.0f}/s" for value in (median(gets), min(gets), max(gets))), "1,000/s"),
    ]


def new_model(service: Service, environment: dict[str, str]) -> str:
    """A model that an inspection found sound; the worker is gone afterwards."""
    os.environ.update(environment)
    (worker,) = workers(service, "io")
    try:
        with Levity(service.url) as levity:
            return levity.create_model(DIGITS / "digits-cnn.onnx").id
    finally:
        worker.terminate()
        worker.wait(60)
        for name in environment:
            del os.environ[name]


def rate(requests: list[str]) -> float:
    """Requests a second when each of the clients sends all of these."""
    config = "\nnext\n".join(f"{request}\noutput = /dev/null\nfail\nsilent\nshow-error" for request in requests)
    start = time.perf_counter()
    clients = [
        subprocess.Popen(["curl", "-K", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(CLIENTS)
    ]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda client: client.communicate(config.encode()), clients))
    if any(client.returncode for client in clients):
        raise SystemExit("a request failed")
    return len(requests) * CLIENTS / (time.perf_counter() - start)


def queued(environment: dict[str, str], count: int) -> list[tuple[object, ...]]:
    url = environment["LEVITY_DATABASE_URL"]
    spec = PipelineSpec(steps=(QuantizeStatic(),)).model_dump(mode="json")
    with running_service("--no-worker", "--api-processes", "2", **environment) as service:
        database = Database(url)
        for _ in range(count // 500):
            with database.write() as session:
                for number in range(500):
                    new = NewJob(
                        JobKind.COMPRESS,
                        Queue.CPU,
                        max_attempts=1,
                        time_limit_seconds=60,
                        model_id="none",
                        spec=spec,
                        priority=number % 10,
                    )
                    Jobs(session).add(new)
        pages, seen, cursor = [], 0, None
        while cursor or not seen:
            start = time.perf_counter()
            parameters = {"state": "queued", "limit": 200, **({"cursor": cursor} if cursor else {})}
            page = httpx.get(f"{service.url}/v1/jobs", params=parameters).raise_for_status().json()
            pages.append(time.perf_counter() - start)
            seen += len(page["items"])
            cursor = page["next_cursor"]
        start = time.perf_counter()
        with ProcessPoolExecutor(CLAIMERS) as pool:
            taken = sum(pool.map(drain, [url] * CLAIMERS))
        seconds = time.perf_counter() - start
        with database.read() as session:
            order = session.execute(
                select(JobRow.priority, JobRow.id).join(AttemptRow).order_by(AttemptRow.started_at, JobRow.id)
            ).all()
        database.dispose()
    wanted = sorted(order, key=lambda row: (-row[0], row[1]))
    displaced = max(abs(place - wanted.index(row)) for place, row in list(enumerate(order))[:: max(1, count // 500)])
    return [
        ("what", "measured"),
        (
            "jobs on pages of 200",
            f"{seen:,}, a page in {median(pages) * 1000:.0f} ms, the slowest {max(pages) * 1000:.0f}",
        ),
        (f"taken by {CLAIMERS} claimers", f"{taken:,}, {taken / seconds:.0f}/s"),
        ("taken twice", len(order) - len({job for _, job in order})),
        ("furthest from its place in the order of priority and age", displaced),
    ]


def drain(url: str) -> int:
    """Claim and end jobs until there are none; how many."""
    database = Database(url)
    taken = 0
    while True:
        with database.write() as session:
            claimed = Leases(session).claim(Queue.CPU, owner=f"claimer-{os.getpid()}", lease_seconds=60)
        if claimed is None:
            database.dispose()
            return taken
        with database.write() as session:
            Leases(session).publish(claimed[0], artifacts=(), result={})
        taken += 1


def overhead(environment: dict[str, str], rounds: int) -> list[tuple[object, ...]]:
    seconds: dict[str, list[float]] = {"SQLite and files": [], "PostgreSQL and Redis": [], "library, warm process": []}
    with ExitStack() as stack:
        sides = {}
        for name, settings in zip(seconds, ({"LEVITY_LOG_LEVEL": "WARNING"}, environment), strict=False):
            service = stack.enter_context(running_service("--api-processes", "2", **settings))
            levity = stack.enter_context(Levity(service.url))
            data = {
                "calibration": levity.create_dataset(CALIBRATION).id,
                "evaluation": levity.create_dataset(EVALUATION).id,
            }
            sides[name] = (levity, levity.create_model(MODEL).id, data)
        for number in range(rounds + 2):
            # A seed of its own keeps every round out of the step cache.
            spec = PipelineSpec(steps=(QuantizeStatic(),), seed=number, benchmark=BenchmarkSpec(max_seconds=0.5))
            turns = list(sides.items()) if number % 2 else list(reversed(sides.items()))
            measured = {}
            for name, (levity, model_id, data) in turns:
                measured[name] = in_service(levity, model_id, data, spec)
                time.sleep(2)  # the next child warms up
            measured["library, warm process"] = in_library(spec)
            if number >= 2:  # the first rounds warm disk caches
                for name, value in measured.items():
                    seconds[name].append(value)
    embedded, production, library = seconds.values()
    ours = [value - bare for value, bare in zip(production, library, strict=True)]
    theirs = [value - bare for value, bare in zip(embedded, library, strict=True)]
    ratio = median([a / b for a, b in zip(production, embedded, strict=True)])
    return [
        (f"static int8 on the digits model, {rounds} rounds", "median", "lowest", "highest", "wanted"),
        *((name, *spread(values), "") for name, values in seconds.items()),
        ("PostgreSQL and Redis - library", *spread(ours), ""),
        ("SQLite and files - library", *spread(theirs), ""),
        ("whole job, PostgreSQL and Redis / SQLite and files", f"{ratio:.2f}x", "", "", "at most 1.2x"),
        ("overhead, the same", f"{median(ours) / median(theirs):.2f}x", "", "", "at most 1.2x"),
    ]


if __name__ == "__main__":
    main()
