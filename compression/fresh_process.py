"""Helpers in a fresh interpreter: started early, so that their imports overlap with other work, asked later.

The parent writes one JSON line per request and reads one per answer. A helper never outlives its parent, and its
answers are the only thing on the pipe: whatever libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import compression

Array = npt.NDArray[Any]

_PR_SET_PDEATHSIG = 1


class ProcessDied(Exception):
    """The helper ended without an answer.

    Args:
        returncode: As of `subprocess`: negative for the signal that killed it.
    """

    def __init__(self, returncode: int) -> None:
        how = f"was killed by {_signal_name(-returncode)}" if returncode < 0 else f"ended with status {returncode}"
        super().__init__(how)


class FreshProcess:
    """A new interpreter that runs `python -m module`, where `module` calls `serve`.

    Start it from a thread that lives as long as it is used: Linux ends it with the thread that started it.

    Args:
        module: What to run.
        folder: The one place where the helper may write; an existing folder.
    """

    def __init__(self, module: str, folder: Path) -> None:
        root = str(Path(compression.__path__[0]).resolve().parent)
        paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self._unread = bytearray()
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self, timeout: float) -> None:
        """Wait until the helper has imported what it needs.

        Raises:
            ProcessDied: It ended before.
            TimeoutError: It took longer than `timeout` seconds.
        """
        if not self._ready:
            self._read(timeout)
            self._ready = True

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to one request. After an error the helper cannot be asked again.

        Raises:
            ProcessDied: It ended without an answer.
            TimeoutError: It took longer than `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        self.ready(timeout)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has ended, as reading will tell
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return self._read(deadline - time.monotonic())

    def close(self) -> None:
        """End the helper and collect its exit status; a second call does nothing."""
        self._process.kill()  # it has nothing to save
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        stdout = self._process.stdout
        while stdout is not None and b"\n" not in self._unread:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([stdout], [], [], remaining)[0]:
                self._process.kill()
                raise TimeoutError(f"no answer within {timeout:.0f} s")
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                raise ProcessDied(self._process.wait())
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The helper's side: answer requests until there are no more. Called once all imports are done."""
    _die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(b"{}\n")
    for line in sys.stdin.buffer:
        answers.write(json.dumps(handle(json.loads(line))).encode() + b"\n")


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> list[str]:
    """Save arrays under their position, since names of tensors need not be names of files; the names in order."""
    np.savez(path, allow_pickle=False, **{f"array{position}": value for position, value in enumerate(arrays.values())})
    return list(arrays)


def load_arrays(path: Path, names: list[str]) -> dict[str, Array]:
    """What `save_arrays` wrote, by the names that it gave back."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[f"array{position}"] for position, name in enumerate(names)}


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent has ended")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
