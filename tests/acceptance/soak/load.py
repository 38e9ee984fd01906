"""Callers that never stop: jobs of all kinds, uploads, downloads, cancellations, each patient and each remembered."""

from __future__ import annotations

import hashlib
import random
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from levity import Job, Levity, LevityError
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, LONG

T = TypeVar("T")

SUCCEEDED = frozenset({"succeeded"})
# Kills cost attempts; nobody should run out of them here.
MANY = 100
# A job that trains may be killed many times before it gets through on a busy machine.
_PATIENCE_SECONDS = 1500
_UNREACHABLE = frozenset({"unreachable", "wait_timeout", "http_502", "http_504"})


@dataclass
class Order:
    """A job as its caller remembers it."""

    kind: str
    key: str
    expected: frozenset[str]
    job_id: str = ""
    state: str = ""


@dataclass(frozen=True)
class Things:
    """What there is to work on."""

    model: str
    broken_model: str
    data: dict[str, str]

    def model_of(self, kind: str) -> str:
        return self.broken_model if kind == "fail" else self.model


class Load:
    """Threads that use the service until `stop`.

    Args:
        urls: Of its API processes; every request takes one of them.
        things: Models and datasets.
        folder: For files on their way.
        seed: Of what is asked for, and when.
        callers: Threads that submit jobs.
    """

    def __init__(self, urls: list[str], things: Things, folder: Path, *, seed: int, callers: int = 3) -> None:
        self.orders: list[Order] = []
        self.uploads = 0
        self.retries: Counter[str] = Counter()
        self.defects: list[str] = []
        self._clients = [Levity(url, timeout=30) for url in urls]
        self._things = things
        self._folder = folder
        self._stop = threading.Event()
        self._lock = threading.Lock()
        works = [self._submit_jobs] * callers + [self._send_files]
        self._threads = [
            threading.Thread(
                target=self._run, args=(work, random.Random(f"{seed}-{number}")), name=f"caller-{number}", daemon=True
            )
            for number, work in enumerate(works)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Begin nothing more, and wait for what was begun."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.defects.append(f"{thread.name} is still waiting")
        for client in self._clients:
            client.close()

    def _run(self, work: Callable[[random.Random], None], rng: random.Random) -> None:
        while not self._stop.is_set():
            try:
                work(rng)
            except Exception:  # noqa: BLE001 - a defect of the service or of this test, and told at the end
                self.defects.append(traceback.format_exc())
                time.sleep(1)

    def _patiently(self, rng: random.Random, action: Callable[[Levity], T], seconds: float = _PATIENCE_SECONDS) -> T:
        """Ask one process after another until one answers. What it says otherwise is an error of the service."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return action(rng.choice(self._clients))
            except (LevityError, httpx.TransportError) as error:
                code = error.code if isinstance(error, LevityError) else "unreachable"
                status = error.status if isinstance(error, LevityError) else None
                if (code not in _UNREACHABLE and status != 503) or time.monotonic() > deadline:
                    raise
                with self._lock:
                    self.retries[code] += 1
                time.sleep(0.2)

    def _submit_jobs(self, rng: random.Random) -> None:
        kind, steps, expected, options = self._draw(rng)
        order = Order(kind, str(uuid.UUID(int=rng.getrandbits(128))), expected)
        with self._lock:
            self.orders.append(order)
        submission = {"benchmark": BRIEF, "max_attempts": MANY, "labels": {"soak": kind}, **options}
        job = self._patiently(
            rng,
            lambda client: client.submit(self._things.model_of(kind), steps, idempotency_key=order.key, **submission),
        )
        order.job_id = job.id
        if kind == "cancel":
            time.sleep(rng.uniform(0, 6))
            self._patiently(rng, lambda client: client.cancel(job.id))
        job = self._patiently(rng, lambda client: self._ended(client, job.id))
        order.state = job.state
        if job.state == "succeeded":
            target = self._folder / f"{order.key}.onnx"
            # Checks the hash.
            self._patiently(rng, lambda client: client.download(job.id, "model.onnx", target))
            target.unlink()

    @staticmethod
    def _ended(client: Levity, job_id: str) -> Job:
        return client.wait(job_id, timeout=60)

    def _draw(self, rng: random.Random) -> tuple[str, list[dict], frozenset[str], dict]:
        amount = round(rng.uniform(0.2, 0.8), 3)
        calibration, training = self._things.data["calibration"], self._things.data["training"]
        kinds = {
            "prune": ([{"type": "prune", "amount": amount}], SUCCEEDED, {}),
            "quantize": (
                [{"type": "prune", "amount": amount}, {"type": "quantize", "mode": "static"}],
                SUCCEEDED,
                {"data": {"calibration": calibration}},
            ),
            "cluster": ([{"type": "cluster", "clusters": rng.choice([8, 16, 32])}, {"type": "encode"}], SUCCEEDED, {}),
            "finetune": (
                [
                    {"type": "prune", "amount": amount},
                    {"type": "finetune", "training": {"epochs": 2, "batch_size": 64}},
                ],
                SUCCEEDED,
                {"data": {"training": training}},
            ),
            "cancel": (
                [{"type": "prune", "amount": amount}],
                frozenset({"cancelled", "succeeded"}),
                {"benchmark": BRIEF | {"max_seconds": 3, "max_rounds": 1_000_000}},
            ),
            "fail": ([{"type": "prune", "amount": 0.5}], frozenset({"failed"}), {}),
            "expire": (
                [{"type": "prune", "amount": amount}],
                frozenset({"expired"}),
                {"benchmark": LONG, "time_limit_seconds": 1},
            ),
        }
        (kind,) = rng.choices(list(kinds), weights=[30, 20, 15, 8, 15, 7, 5])
        return kind, *kinds[kind]

    def _send_files(self, rng: random.Random) -> None:
        """A file in several parts, whose hash must be right; now and then a dataset that is used and forgotten."""
        path = self._folder / "upload.bin"
        if rng.random() < 0.3:
            self._use_dataset(rng)
        else:
            content = rng.randbytes(rng.randrange(1, 4 * 2**20))
            path.write_bytes(content)
            upload = self._patiently(rng, lambda client: client.upload(path))
            if upload.sha256 != hashlib.sha256(content).hexdigest():
                self.defects.append(f"upload {upload.id} has another hash")
            self._patiently(rng, lambda client: self._forget(lambda: client.delete_upload(upload.id)))
        self.uploads += 1
        time.sleep(rng.uniform(0, 2))

    def _use_dataset(self, rng: random.Random) -> None:
        dataset = self._patiently(rng, lambda client: client.create_dataset(DIGITS / "calibration.npz", wait=10))

        def state(client: Levity) -> str:
            return client.get_dataset(dataset.id).state

        deadline = time.monotonic() + 120
        while (found := self._patiently(rng, state)) == "inspecting" and time.monotonic() < deadline:
            time.sleep(0.2)
        if found != "ready":
            self.defects.append(f"dataset {dataset.id} is {found}")
        self._patiently(rng, lambda client: self._forget(lambda: client.delete_dataset(dataset.id)))

    @staticmethod
    def _forget(delete: Callable[[], None]) -> None:
        try:
            delete()
        except LevityError as error:
            # The request before this one was heard, its answer lost.
            if error.status != 404:
                raise
