"""Runs confined children over numbered files, as a worker does, and counts what came of each."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tests
from catalog.jobs.states import Queue
from catalog.settings import Settings
from compression.signature import DatasetSummary, ModelSummary
from workers.failures import of_dead_child
from workers.protocol import DatasetInspected, Failed, ModelInspected, ProtocolViolation, read_event
from workers.sandbox import Command, Sandbox

GIB = 2**30
ACCEPTED = "accepted"
_FILES_PER_CHILD = 4000


@dataclass
class Tally:
    """What came of the files of one kind.

    Attributes:
        outcomes: Files by code; `accepted` for those that are no worse for the damage.
        bad: Kind, number and what happened, of each file that was not answered as it should be.
        slowest: Processor time in seconds and number of the file that took most.
        peak_kib: Largest memory of a child.
        restarts: Children that died.
    """

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    peak_kib: int = 0
    restarts: int = 0

    @property
    def files(self) -> int:
        return self.outcomes.total()


class FuzzSandbox(Sandbox):
    """Shows the children these tests, too."""

    def wrap(self, arguments: Sequence[str], workdir: Path) -> Command:
        command = super().wrap(arguments, workdir)
        folder = Path(tests.__path__[0])
        words = list(command.arguments)
        if self.level == "bubblewrap":
            at = words.index("--bind")
            words[at:at] = ["--ro-bind", str(folder), str(folder)]
        path = os.pathsep.join([str(folder.parent), command.environment["PYTHONPATH"]])
        return replace(command, arguments=words, environment={**command.environment, "PYTHONPATH": path})


def fuzz(kind: str, files: range, *, seed: int, onnx_seeds: Sequence[bytes], hang_seconds: float = 60) -> Tally:
    """Send files to confined children until all are answered."""
    tally = Tally(kind)
    start = files.start
    with tempfile.TemporaryDirectory(prefix="levity-fuzz-") as folder:
        run = _Run(tally, Path(folder), seed, onnx_seeds, hang_seconds)
        while start < files.stop:
            start = run.child(range(start, min(start + _FILES_PER_CHILD, files.stop)))
    return tally


class _Run:
    """Children over the files of one kind, one after the other."""

    def __init__(self, tally: Tally, folder: Path, seed: int, onnx_seeds: Sequence[bytes], hang_seconds: float) -> None:
        self._tally = tally
        self._folder = folder
        self._seed = seed
        self._onnx_seeds = onnx_seeds
        self._hang_seconds = hang_seconds
        settings = Settings(data_dir=folder / "data")
        self._sandbox = FuzzSandbox(Sandbox.choose(settings, Queue.IO).level, settings, Queue.IO)

    def child(self, files: range) -> int:
        """Run a child until it is done or dies; the number of the file that comes next."""
        process = self._start(files)
        tally, position = self._tally, files.start
        try:
            for event, note in _pairs(process, self._hang_seconds):
                _count(tally, event, note, position)
                position += 1
        except TimeoutError:
            tally.outcomes["hang"] += 1
            tally.bad.append(f"{tally.kind} {position}: no answer within {self._hang_seconds} s")
            position += 1
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            returncode = process.wait()
            process.stdout.close()
        if position < files.stop and returncode not in (0, -signal.SIGKILL):
            tail = (self._folder / "log").read_bytes()[-4000:].decode(errors="replace")
            failure = of_dead_child(returncode, tail, self._sandbox.memory_limit)
            tally.outcomes[failure.code] += 1
            tally.restarts += 1
            tally.bad.append(f"{tally.kind} {position}: {failure.message} {tail[-300:]}")
            position += 1
        return position

    def _start(self, files: range) -> subprocess.Popen[bytes]:
        workdir = self._folder / "job"
        shutil.rmtree(workdir, ignore_errors=True)
        (workdir / "seeds").mkdir(parents=True)
        for number, data in enumerate(self._onnx_seeds):
            (workdir / "seeds" / f"{number:05d}").write_bytes(data)
        config = {
            "kind": self._tally.kind,
            "seed": self._seed,
            "start": files.start,
            "end": files.stop,
            "address_space": 4 * GIB,
        }
        words = [sys.executable, "-P", "-s", "-m", "tests.fuzz.child", json.dumps(config)]
        command = self._sandbox.wrap(words, workdir)
        with (self._folder / "log").open("wb") as log:
            return subprocess.Popen(
                command.arguments,
                env=command.environment,
                cwd=command.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )


def _pairs(process: subprocess.Popen[bytes], hang_seconds: float):
    """The event and the note of each file; ends with the process."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        rest = b""
        pending: list[bytes] = []
        deadline = time.monotonic() + 2 * hang_seconds
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            chunk = os.read(process.stdout.fileno(), 2**18)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            pending += lines
            while len(pending) >= 2:
                yield pending.pop(0), pending.pop(0)
                deadline = time.monotonic() + hang_seconds


def _count(tally: Tally, event: bytes, note: bytes, position: int) -> None:
    number, used, peak = note[1:].split()
    assert int(number) == position
    try:
        outcome = _outcome(event)
    except ProtocolViolation as error:
        # As `workers.supervisor` does: the job fails, and what went wrong is the child's fault.
        outcome = "child_misbehaved"
        event += str(error).encode()
    tally.outcomes[outcome] += 1
    if outcome in ("internal_error", "child_misbehaved"):
        tally.bad.append(f"{tally.kind} {position}: {event.decode()[-600:]}")
    tally.slowest = max(tally.slowest, (float(used), position))
    tally.peak_kib = max(tally.peak_kib, int(peak))


def _outcome(event: bytes) -> str:
    """The code that a worker and the API would give."""
    if event == b'{"type": "read"}':
        return ACCEPTED
    match read_event(event):
        case Failed(code=code, message=message):
            assert message
            return code
        case ModelInspected(summary=summary):
            # As the database keeps it and the API gives it out.
            ModelSummary.model_validate(json.loads(json.dumps(summary.model_dump(mode="json"), allow_nan=False)))
            return ACCEPTED
        case DatasetInspected(summary=dataset):
            DatasetSummary.model_validate(json.loads(json.dumps(dataset.model_dump(mode="json"), allow_nan=False)))
            return ACCEPTED
        case other:
            raise AssertionError(other)
