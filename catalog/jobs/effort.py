"""What an attempt takes, as its worker measures it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

from compression.context import PHASES

OTHER_PHASE = "other"
"""Stands for a name that no phase has: it comes from a process that is not trusted."""


class Effort:
    """A clock that runs from an attempt's claim on. One thread at a time uses it.

    Args:
        waited_seconds: How long the job could have been claimed before it was.
    """

    def __init__(self, waited_seconds: float = 0.0) -> None:
        self.waited_seconds = waited_seconds
        self.input_bytes = 0
        self.steps: list[tuple[str, float]] = []
        """Type and seconds of each step that was worked on, and not found finished."""
        self._begun = self._since = time.monotonic()
        self._phase = "preparing"
        self._spent: defaultdict[str, float] = defaultdict(float)

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._note()
        self._phase = phase if phase in PHASES else OTHER_PHASE

    def note_step(self, type_: str, seconds: float) -> None:
        """A step took so long, as the job's process says; it cannot have taken longer than the attempt."""
        self.steps.append((type_, min(max(seconds, 0.0), time.monotonic() - self._begun)))

    def phases(self) -> Mapping[str, float]:
        """Seconds by phase until now."""
        self._note()
        return self._spent

    def _note(self) -> None:
        now = time.monotonic()
        self._spent[self._phase] += now - self._since
        self._since = now
