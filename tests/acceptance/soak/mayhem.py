"""Random kills of every part of a service, and the repair that a process manager would do."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.acceptance.backends import Production
from tests.acceptance.harness import Process, Service
from tests.acceptance.processes import send

# A pause that a lease survives, and one that it does not.
SHORT, LONG = (0.5, 3.0), (8.0, 12.0)


@dataclass
class Slot:
    """A place where one process after another runs."""

    name: str
    start: Callable[[], Process]
    process: Process


class Mayhem:
    """Breaks one thing at a time.

    Beside those that are killed run an API process and a worker of each queue that are never killed, though stopped
    and cut off like all others: their memory is what is measured.

    Args:
        service: With its API process and one worker of each queue running.
        seed: Of what is done to whom.
    """

    def __init__(self, service: Service, *, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._service = service
        self._rng = random.Random(seed)
        assert service.api is not None
        self.witnesses = {"api": service.api, **{worker.name: worker for worker in service.workers}}
        second = service.start_another_api()
        port = int(second.url.rpartition(":")[2])
        self.urls = [service.client.base_url, second.url]
        self._slots = [
            Slot("api", lambda: service.start_another_api(port), second),
            *(self._worker(queue) for queue in ("cpu", "cpu", "io")),
        ]
        self._deeds: list[tuple[int, Callable[[], str]]] = [
            (6, self._kill),
            (4, self._terminate),
            (3, lambda: self._pause(SHORT)),
            (2, lambda: self._pause(LONG)),
            (5, self._hurt_child),
        ]
        if isinstance(service.backend, Production):
            self._deeds += [(3, self._break_redis), (2, self._cut_database)]
        else:
            self._deeds.append((2, self._forget_messages))

    def rage(self, seconds: float) -> None:
        """Break things for so long; afterwards everything runs."""
        deadline = time.monotonic() + seconds
        weights = [weight for weight, _ in self._deeds]
        while time.monotonic() < deadline:
            time.sleep(self._rng.uniform(0.5, 5))
            (deed,) = self._rng.choices([deed for _, deed in self._deeds], weights=weights)
            self.done[deed()] += 1
            self._repair()

    def _worker(self, queue: str) -> Slot:
        def start() -> Process:
            return self._service.start_worker(queue)

        return Slot(f"worker-{queue}", start, start())

    def _repair(self) -> None:
        for slot in self._slots:
            if not slot.process.alive:
                slot.process = slot.start()
        for name, witness in self.witnesses.items():
            assert witness.alive, f"the {name} that nobody killed has ended: {witness.log.read_text()[-3000:]}"
        self._service.workers = [worker for worker in self._service.workers if worker.alive]
        self._service.other_apis = [api for api in self._service.other_apis if api.alive]

    def _kill(self) -> str:
        slot = self._rng.choice(self._slots)
        slot.process.kill()
        time.sleep(self._rng.uniform(0, 2))
        return f"{slot.name}: SIGKILL"

    def _terminate(self) -> str:
        slot = self._rng.choice(self._slots)
        slot.process.stop(seconds=60)
        return f"{slot.name}: SIGTERM"

    def _pause(self, seconds: tuple[float, float]) -> str:
        names = [(slot.name, slot.process) for slot in self._slots] + list(self.witnesses.items())
        if seconds is LONG:
            names = [(name, process) for name, process in names if name != "api"]
        name, process = self._rng.choice(names)
        process.send(signal.SIGSTOP)
        time.sleep(self._rng.uniform(*seconds))
        process.send(signal.SIGCONT)
        return f"{name}: SIGSTOP {'beyond its lease' if seconds is LONG else 'and SIGCONT'}"

    def _hurt_child(self) -> str:
        number = self._rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
        workers = [worker for worker in self._service.workers if worker.alive]
        self._rng.shuffle(workers)
        for worker in workers:
            child = self._service.running_child(worker)
            if child is not None:
                with suppress(ProcessLookupError):
                    send(child.pid, number)
                    if number == signal.SIGSTOP:
                        time.sleep(self._rng.uniform(*SHORT))
                        send(child.pid, signal.SIGCONT)
                return f"child: {number.name}"
        return "child: none was there"

    def _break_redis(self) -> str:
        redis = self._service.backend.own_redis
        what = self._rng.choice(["SIGKILL", "SIGKILL and wiped", "SIGSTOP and SIGCONT"])
        if what.startswith("SIGKILL"):
            redis.kill()
            if what != "SIGKILL":
                redis.wipe()
            time.sleep(self._rng.uniform(0, 4))
            redis.start()
        else:
            redis.send(signal.SIGSTOP)
            time.sleep(self._rng.uniform(*SHORT))
            redis.send(signal.SIGCONT)
        return f"redis: {what}"

    def _cut_database(self) -> str:
        self._service.backend.cut_connections()
        return "postgresql: all connections cut"

    def _forget_messages(self) -> str:
        self._service.backend.wipe_broker()
        return "broker: all messages forgotten"
