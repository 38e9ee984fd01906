"""Spans of a child, which has no network and so tells its worker of them.

The child is not trusted: how many spans it may have, how long their names are and when they may have been is decided
here and in `workers.protocol`. What makes no sense is left out, and costs the job nothing.
"""

from __future__ import annotations

import time

from catalog.tracing import Span
from workers.protocol import SpanBegun, SpanEnded

MOST_SPANS = 200


class ChildSpans:
    """Makes a child's spans anew, below the worker's own.

    Args:
        parent: The worker's span of the child.
    """

    def __init__(self, parent: Span) -> None:
        self._parent = parent
        self._begun_at = time.time()
        self._open: dict[int, tuple[Span, float]] = {}
        self._left = MOST_SPANS
        self._dropped = 0

    def hear(self, event: SpanBegun | SpanEnded) -> None:
        """The child began something, or ended it."""
        if isinstance(event, SpanBegun):
            self._begin(event)
        else:
            self._end(event)

    def _begin(self, event: SpanBegun) -> None:
        if self._left == 0 or event.id in self._open:
            self._dropped += 1
            return
        self._left -= 1
        above, since = (self._parent, self._begun_at)
        if event.parent is not None and event.parent in self._open:
            above, since = self._open[event.parent]
        at = self._possible(event.at, since)
        self._open[event.id] = (above.child(event.name, at=at, attributes=event.attributes), at)

    def _end(self, event: SpanEnded) -> None:
        if event.id in self._open:
            span, since = self._open.pop(event.id)
            if event.error is not None:
                span.fail(event.error)
            span.end(at=self._possible(event.at, since))

    def close(self) -> None:
        """The child says no more: what it did not end was cut off."""
        now = time.time()
        for span, _ in reversed(self._open.values()):
            span.fail("cut_off")
            span.end(at=now)
        self._open.clear()
        if self._dropped:
            self._parent.note(dropped_spans=self._dropped)

    @staticmethod
    def _possible(at: float, since: float) -> float:
        return min(max(at, since), time.time())
