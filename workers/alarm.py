"""The time at which the sweeper looks around next."""

from __future__ import annotations

import threading
import time


class Alarm:
    """Wakes one waiting thread at a time that may be moved forward."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._at = 0.0
        self._stopped = False

    def ring_in(self, seconds: float) -> None:
        """Ring after `seconds` at the latest."""
        with self._condition:
            self._at = min(self._at, time.monotonic() + seconds)
            self._condition.notify()

    def stop(self) -> None:
        """Let the waiting thread go for good."""
        with self._condition:
            self._stopped = True
            self._condition.notify()

    def wait(self, then_after: float) -> bool:
        """Wait until it rings, the first time at once; False once it was stopped.

        Args:
            then_after: Seconds from that moment to the next ringing.
        """
        with self._condition:
            while not self._stopped and (seconds := self._at - time.monotonic()) > 0:
                self._condition.wait(seconds)
            self._at = time.monotonic() + then_after
            return not self._stopped
