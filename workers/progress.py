"""From a child's reports to a job's progress: every change of phase, else a few times a second."""

from __future__ import annotations

import time

from workers.lease import Lease
from workers.protocol import Progressed

_INTERVAL_SECONDS = 0.25
# A child that changes its phase for ever must not fill the event table.
_PHASE_CHANGES = 200


class ProgressRelay:
    """Writes progress to the database, but not as often as a child may report it."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._pending: Progressed | None = None
        self._phase = "loading"
        self._phase_changes = 0
        self._fraction = 0.0
        self._due = 0.0

    def update(self, event: Progressed) -> None:
        """Take note of a report; a change of phase is written at once."""
        # The order of phases tells a story, so none is overwritten by its successor.
        if event.phase != self._phase and self._phase_changes < _PHASE_CHANGES:
            self._phase = event.phase
            self._phase_changes += 1
            self._write(event)
        else:
            self._pending = event

    def seconds_until_due(self, at_most: float) -> float:
        """Time until `flush_when_due` has something to write, or `at_most`."""
        if self._pending is None:
            return at_most
        return max(0.0, min(at_most, self._due - time.monotonic()))

    def flush_when_due(self) -> None:
        """Write the latest report when it is time to."""
        if self._pending is not None and time.monotonic() >= self._due:
            self._write(self._pending)

    def _write(self, event: Progressed) -> None:
        self._pending = None
        self._due = time.monotonic() + _INTERVAL_SECONDS
        self._fraction = max(self._fraction, event.fraction)
        claim, fraction = self._lease.claim, self._fraction
        self._lease.write(
            lambda leases: leases.progress(claim, phase=event.phase, fraction=fraction, message=event.message)
        )
