"""Looking at processes through /proc."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.spawn import started

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class ProcessInfo:
    pid: int
    parent: int
    state: str
    started: int
    """Clock ticks since boot: with the pid it names one process for ever."""
    command: tuple[str, ...]


def adopt_orphans() -> None:
    """Whatever a process started by us leaves behind when it dies becomes our child, where we find it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def all_processes() -> dict[int, ProcessInfo]:
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            info = look(int(entry.name))
            if info is not None:
                found[info.pid] = info
    return found


def look(pid: int) -> ProcessInfo | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = tuple(
            part.decode(errors="replace") for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        )
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessInfo(pid, int(fields[1]), fields[0], int(fields[19]), command[:-1])


def descendants(pid: int) -> list[ProcessInfo]:
    """All processes below `pid`, parents before children."""
    processes = all_processes()
    found: list[ProcessInfo] = []
    parents = {pid}
    while parents:
        level = [info for info in processes.values() if info.parent in parents]
        found += level
        parents = {info.pid for info in level}
    return found


def runs(info: ProcessInfo) -> bool:
    """Whether this very process is still there, and no zombie."""
    now = look(info.pid)
    return now is not None and now.started == info.started and now.state != "Z"


def orphans() -> list[ProcessInfo]:
    """Live children of this process that it did not start on purpose; dead ones are reaped."""
    found = []
    for info in all_processes().values():
        if info.parent != os.getpid() or info.pid in started():
            continue
        if info.state == "Z":
            try:
                os.waitpid(info.pid, os.WNOHANG)
            except ChildProcessError:
                continue
        else:
            found.append(info)
    return found


def send(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)


def eventually(condition, *, seconds: float = 30, pause: float = 0.02, what: str = ""):
    """Wait until `condition()` is truthy and return what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(pause)
