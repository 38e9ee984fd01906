"""Threads that stop where a test says so, to try every order in which two of them can go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import combinations

_local = threading.local()
_SECONDS = 60


def at(point: str) -> None:
    """A place where a stepped thread waits for its next turn; others pass."""
    stepped = getattr(_local, "stepped", None)
    if stepped is not None:
        stepped.pause(point)


class Stepped:
    """A function in a thread, run from one point to the next.

    Attributes:
        trace: The points that it came to.
        error: What it raised.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self.trace: list[str] = []
        self.error: BaseException | None = None
        self.result: object = None
        self._turn = threading.Semaphore(0)
        self._rests = threading.Semaphore(0)
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def step(self) -> bool:
        """Go on to the next point; False when the thread has ended."""
        if self._ended:
            return False
        self._turn.release()
        assert self._rests.acquire(timeout=_SECONDS), self.trace
        return True

    def finish(self) -> None:
        """Go on to the end; raises what the function raised."""
        while self.step():
            pass
        self._thread.join(_SECONDS)
        if self.error is not None:
            raise self.error

    def pause(self, point: str) -> None:
        self.trace.append(point)
        self._rests.release()
        assert self._turn.acquire(timeout=_SECONDS), self.trace

    def _run(self, function: Callable[[], object]) -> None:
        _local.stepped = self
        assert self._turn.acquire(timeout=_SECONDS)
        try:
            self.result = function()
        except BaseException as error:  # noqa: BLE001 - raised again by `finish`
            self.error = error
        finally:
            self._ended = True
            self._rests.release()


def orders(first: int, second: int) -> Iterator[str]:
    """Every way to merge `first` steps of "a" and `second` steps of "b"."""
    for places in combinations(range(first + second), first):
        yield "".join("a" if place in places else "b" for place in range(first + second))
