"""Which cores timed calls run on. A thread that wanders from core to core leaves its caches behind."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_NO_CHOICE = "this system does not let a process choose its cores"


class Cores:
    """Pins the calling thread, and says where the runtime should pin its own, for as long as the context lasts.

    Args:
        threads: Threads of a call, the calling one included; 0 for one on each physical core.
        pin: False leaves all to the system.
        start: Of the rotation through the cores, so that processes do not all begin with the same one.

    Attributes:
        threads: The same, or the number of physical cores in place of 0 where threads are pinned.
        why_not: Why threads are not pinned, in words; empty where they are.
    """

    def __init__(self, threads: int, *, pin: bool, start: int = 0) -> None:
        self.threads = threads
        self._start = start
        self._allowed = allowed()
        self._usable = physical(self._allowed)
        self.why_not = self._obstacle(pin)
        if not self.why_not:
            self.threads = threads or len(self._usable)
            if self.threads > len(self._usable):
                self._usable = tuple(sorted(self._allowed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def of(self, load: int) -> tuple[int, ...]:
        """The cores of a load, the calling thread's first; each load begins one further. None where none are pinned."""
        if self.why_not:
            return ()
        first = (self._start + load) % len(self._usable)
        return (*self._usable[first:], *self._usable[:first])[: self.threads]

    def pin(self, load: int) -> None:
        """Keep the calling thread on its core of that load."""
        chosen = self.of(load)
        if chosen:
            os.sched_setaffinity(0, chosen[:1])

    def release(self) -> None:
        """Let the calling thread run wherever it could before."""
        if not self.why_not:
            os.sched_setaffinity(0, self._allowed)

    def _obstacle(self, pin: bool) -> str:
        if not pin:
            return "the job asks for that"
        if not self._allowed:
            return _NO_CHOICE
        if self.threads > len(self._allowed):
            return f"{self.threads} threads are more than the {len(self._allowed)} cores that this process may use"
        try:
            os.sched_setaffinity(0, self._allowed)
        except OSError:
            return _NO_CHOICE
        return ""


def allowed() -> frozenset[int]:
    """The logical processors that the calling thread may use; empty where the system does not say."""
    ask = getattr(os, "sched_getaffinity", None)
    return frozenset() if ask is None else frozenset(ask(0))


def physical(processors: Iterable[int]) -> tuple[int, ...]:
    """One logical processor for each physical core among `processors`, in ascending order."""
    found: dict[str, int] = {}
    for processor in sorted(processors):
        try:
            siblings = Path(_TOPOLOGY.format(processor)).read_text().strip()
        except OSError:
            siblings = str(processor)
        found.setdefault(siblings, processor)
    return tuple(found.values())
