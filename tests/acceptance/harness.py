"""A real service in real processes, that tests may kill, stop and look into."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from catalog.blobs import Blobs
from catalog.broker import Wakeups, build_celery
from catalog.db import Database
from catalog.jobs.repository import Jobs
from catalog.jobs.states import TERMINAL, AttemptOutcome, JobState
from catalog.jobs.tables import AttemptRow, JobRow
from catalog.settings import Settings
from catalog.storage.ledger import DatabaseLedger
from levity import Job, Levity
from tests.acceptance.backends import Backend
from tests.acceptance.processes import ProcessInfo, descendants, eventually, orphans, runs
from tests.spawn import spawn

GIB = 2**30
ROOT = Path(__file__).parents[2]
# A worker that hangs is noticed within seconds, and what should take no time is not waited for.
FAST = {
    "LEVITY_HEARTBEAT_SECONDS": "0.5",
    "LEVITY_LEASE_SECONDS": "3",
    "LEVITY_SWEEP_SECONDS": "0.5",
    "LEVITY_POLL_SECONDS": "0.1",
    "LEVITY_DRAIN_SECONDS": "1",
    "LEVITY_GRACE_SECONDS": "1",
    "LEVITY_JOB_MEMORY_LIMIT_BYTES": str(8 * GIB),
    "LEVITY_WEBHOOK_ALLOW_HTTP": "true",
    "LEVITY_WEBHOOK_TIMEOUT_SECONDS": "3",
}
# A measurement that ends at once, and one that outlasts whatever a test does meanwhile.
BRIEF = {"max_seconds": 0.05, "min_rounds": 5, "max_rounds": 5, "evaluation_samples": 50}
LONG = {"max_seconds": 120, "max_rounds": 1_000_000, "evaluation_samples": 50}
PRUNE = ({"type": "prune", "amount": 0.5},)


@dataclass
class Process:
    """One of the service's processes."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    url: str = ""
    """Where an API process listens."""

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and nothing of it may be left soon after."""
        below = descendants(self.pid)
        self.popen.kill()
        self.popen.wait()
        eventually(lambda: not any(map(runs, below)), seconds=15, what=f"children of {self.name} died with it")

    def stop(self, seconds: float = 15) -> None:
        """SIGTERM, and it must end by itself."""
        self.popen.send_signal(signal.SIGCONT)
        self.popen.terminate()
        self.popen.wait(timeout=seconds)


class Service:
    """API processes and workers over one backend.

    Args:
        folder: Where the processes' logs go.
        backend: What they run on.
        data_dir: Their data folder.
        settings: `LEVITY_` variables in lower case, beside those that make things fast.
    """

    def __init__(self, folder: Path, backend: Backend, data_dir: Path, **settings: object) -> None:
        self.folder = folder
        self.backend = backend
        self.data_dir = data_dir
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LEVITY_")},
            **FAST,
            **backend.environment,
            **_variables(settings),
            "LEVITY_DATA_DIR": str(data_dir),
            # Some workers are made by modules of these tests.
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            # Two processes that compute at once must not fight for the machine's cores.
            "OMP_NUM_THREADS": "1",
        }
        known = {name.removeprefix("LEVITY_").lower(): value for name, value in self.environment.items()}
        self.settings = Settings(**{name: known[name] for name in Settings.model_fields if name in known})
        # Receivers of webhooks are on this machine. A list is JSON here only.
        self.environment["LEVITY_WEBHOOK_ALLOWED_NETWORKS"] = '["127.0.0.0/8"]'
        self.database = Database(self.settings.resolved_database_url, pool_size=2)
        with pytest.MonkeyPatch.context() as patch:
            # obstore reads them when the store is opened.
            for name, value in self.environment.items():
                if name.startswith("AWS_"):
                    patch.setenv(name, value)
            self.blobs = Blobs.from_settings(self.settings, DatabaseLedger(self.database))
        self.port = _free_port()
        self.api: Process | None = None
        self.other_apis: list[Process] = []
        self.workers: list[Process] = []
        self.client = Levity(f"http://127.0.0.1:{self.port}")
        self._started = 0

    # Processes

    def start_api(self) -> None:
        self.api = self.start_another_api(self.port)

    def start_another_api(self, port: int | None = None, **settings: object) -> Process:
        """A further API process, on a port of its own unless told; `settings` as for a worker."""
        port = port or _free_port()
        options = ["--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", "2"]
        command = ["uvicorn", "api.app:create_app", "--factory", *options]
        api = self._start("api", command, _variables(settings))
        api.url = f"http://127.0.0.1:{port}"
        if port != self.port:
            self.other_apis.append(api)
        eventually(lambda: _answers(api), seconds=120, what="the API answers")
        return api

    def start_worker(self, queue: str = "cpu", module: str = "workers", **settings: object) -> Process:
        """A worker of `queue`, from the module that makes it one; `settings` are `LEVITY_` variables in lower case."""
        worker = self._start(f"worker-{queue}", [module, "--queue", queue], _variables(settings))
        self.workers.append(worker)
        return worker

    @property
    def processes(self) -> list[Process]:
        """All that were started, dead ones too."""
        return [*([] if self.api is None else [self.api]), *self.other_apis, *self.workers]

    @property
    def cpu_worker(self) -> Process:
        """The only worker of the queue `cpu`."""
        (worker,) = [worker for worker in self.workers if worker.name == "worker-cpu" and worker.alive]
        return worker

    def ensure(self) -> None:
        """The API and one worker of each queue run; no others."""
        if self.api is None or not self.api.alive:
            self.start_api()
        for api in self.other_apis:
            if api.alive:
                api.stop()
        self.other_apis.clear()
        for queue in ("cpu", "io"):
            alive = [worker for worker in self.workers if worker.name == f"worker-{queue}" and worker.alive]
            for worker in alive[1:]:
                worker.stop()
            if not alive:
                self.start_worker(queue)
        self.workers = [worker for worker in self.workers if worker.alive]

    def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.alive:
                worker.stop()

    def stop(self) -> None:
        self.client.close()
        self.database.dispose()
        for process in self.processes:
            if process.alive:
                process.stop()

    def reset(self) -> None:
        """After a test that failed: end its jobs and workers, so that the next one starts from a clean state."""
        for process in self.processes:
            if process.alive:
                process.popen.kill()
                process.popen.wait()
        with self.database.write() as session:
            for row in session.scalars(select(JobRow).where(JobRow.state.not_in(TERMINAL))):
                row.state = JobState.CANCELLED

    def print_logs(self) -> None:
        """Show the end of what each process wrote; pytest shows it with the failure."""
        for log in sorted(self.folder.glob("*.log")):
            sys.stdout.write(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}\n")

    def _start(self, name: str, command: list[str], extra: dict[str, str] | None = None) -> Process:
        self._started += 1
        log = self.folder / f"{self._started:02d}-{name}.log"
        with log.open("wb") as file:
            popen = spawn(
                [sys.executable, "-P", "-m", *command],
                env={**self.environment, **(extra or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return Process(name, popen, log)

    def running_child(self, worker: Process) -> ProcessInfo | None:
        """The process that works on the worker's job, None while it only waits for one."""
        for top in descendants(worker.pid):
            if top.parent == worker.pid and _has_request(top):
                tree = [top, *descendants(top.pid)]
                inner = [info for info in tree if "workers.runner" in info.command and "--bind" not in info.command]
                if inner:
                    return inner[0]
        return None

    # Jobs

    def jobs_marked(self, mark: str) -> list[str]:
        """Ids of jobs with this label `mark`, sorted."""
        with self.database.read() as session:
            return sorted(row.id for row in session.scalars(select(JobRow)) if row.labels.get("mark") == mark)

    def wait_for(
        self, job_id: str, condition: Callable[[JobRow], bool], *, seconds: float = 30, pause: float = 0.01
    ) -> JobRow:
        """Wait until the job's row fulfils `condition`."""

        def look_up() -> JobRow | None:
            with self.database.read() as session:
                row = Jobs(session).get(job_id)
                return row if condition(row) else None

        return eventually(look_up, seconds=seconds, pause=pause, what=f"job {job_id}")

    def wait_for_phase(self, job_id: str, phase: str, *, attempt: int = 1, seconds: float = 30) -> JobRow:
        """Wait until the attempt is in this phase."""
        return self.wait_for(
            job_id,
            lambda row: row.state == JobState.RUNNING and row.attempt == attempt and row.phase == phase,
            seconds=seconds,
        )

    def wake(self, queue: str) -> None:
        Wakeups(build_celery(self.settings)).wake(queue)

    # Invariants

    def assert_settled(self, job: Job | str, state: JobState | str) -> JobRow:
        """The job ended once, in this state, and its result comes from one attempt, or there is none."""
        job_id = job if isinstance(job, str) else job.id
        with self.database.read() as session:
            jobs = Jobs(session)
            row = jobs.get(job_id)
            events = jobs.events(job_id, limit=100_000)
            attempts = jobs.attempts(job_id)
            artifacts = jobs.artifacts(job_id)
        assert row.state == state, (row.state, row.error)
        terminal = [event for event in events if event.type in {str(s) for s in JobState if s.terminal}]
        assert [event.type for event in terminal] == [state]
        assert events[-1].seq == terminal[0].seq
        assert [event.seq for event in events] == list(range(1, row.last_event + 1))
        assert [attempt.number for attempt in attempts] == list(range(1, row.attempt + 1))
        assert all(attempt.ended_at is not None for attempt in attempts)
        published = [attempt.number for attempt in attempts if attempt.outcome == AttemptOutcome.SUCCEEDED]
        if state == JobState.SUCCEEDED:
            assert published == [row.attempt]
            assert {artifact.attempt for artifact in artifacts} == {row.attempt}
            assert {"model.onnx", "report.json", "report.html", "manifest.json"} <= {a.name for a in artifacts}
            assert all(self.blobs.exists(artifact.sha256) for artifact in artifacts)
            assert row.result is not None
        else:
            assert published == []
            assert artifacts == []
            assert row.result is None
        assert row.owner is None
        assert row.lease_until is None
        return row

    def assert_no_attempt_twice(self) -> None:
        """No worker ever ended an attempt of another, over all jobs so far."""
        with self.database.read() as session:
            unended = session.execute(
                select(AttemptRow.job_id, AttemptRow.number)
                .join(JobRow)
                .where(AttemptRow.ended_at.is_(None), JobRow.state != JobState.RUNNING)
            ).all()
        assert unended == []

    def assert_tidy(self) -> None:
        """Nothing is at work, and nothing is left of what was."""
        eventually(lambda: not self._leftovers(), seconds=30, what=f"nothing is left over: {self._leftovers()}")

    def _leftovers(self) -> list[str]:
        left = [f"process {info}" for info in orphans()]
        with self.database.read() as session:
            left += [
                f"job {row.id} {row.state}"
                for row in session.scalars(select(JobRow))
                if not JobState(row.state).terminal
            ]
        live = [worker for worker in self.workers if worker.alive]
        left += [f"{worker.name} is at work" for worker in live if self.running_child(worker)]
        # A live worker keeps a folder, and in it one for each child that waits for its job.
        work = self.settings.folder("work")
        owners = [path for path in work.iterdir() if path.is_dir()]
        if len(owners) > len(live) or any(len(list(o.iterdir())) > self.settings.warm_children for o in owners):
            left.append(f"work folders {sorted(str(path.relative_to(work)) for path in work.rglob('*'))}")
        return left


def _has_request(info: ProcessInfo) -> bool:
    """Whether a process was given a job: its folder, bound into a sandbox or its own, holds a request."""
    if "--bind" in info.command:
        folder = Path(info.command[info.command.index("--bind") + 1])
    else:
        try:
            folder = Path(f"/proc/{info.pid}/cwd").readlink()
        except FileNotFoundError:
            return False
    return (folder / "request.json").exists()


def _variables(settings: dict[str, object]) -> dict[str, str]:
    return {f"LEVITY_{name.upper()}": str(value) for name, value in settings.items()}


def _answers(api: Process) -> bool:
    assert api.alive, api.log.read_text()[-3000:]
    try:
        return httpx.get(f"{api.url}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
