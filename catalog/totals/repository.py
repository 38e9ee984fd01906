"""All SQL about what has been counted.

Numbers are added in the transaction of what they count, so that they are exact whoever dies, and as its last act, in a
fixed order: no two transactions wait for each other, and none keeps another waiting for longer than a commit.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Executable, event, func, select
from sqlalchemy.orm import Session

from catalog.engines import UPSERTS
from catalog.tenancy import TenantSession
from catalog.totals.metrics import COUNTERS, Counter, Histogram
from catalog.totals.tables import TotalRow

_KEY = "levity.totals"
_SUM = "sum"
_OTHER = "other"

Series = Mapping[tuple[str, ...], float]
"""Numbers by the values of their labels."""
_Numbers = defaultdict[tuple[str, str], float]
"""By name and labels, as in the table."""


def count(session: Session, counter: Counter, *labels: str, by: float = 1) -> None:
    """Add to a counter when the session commits."""
    _pending(session)[counter.name, json.dumps(labels)] += by


def observe(session: Session, histogram: Histogram, *labels: str, seconds: float) -> None:
    """Add a value to a histogram when the session commits."""
    seconds = max(0.0, seconds)
    pending = _pending(session)
    pending[histogram.name, json.dumps([*labels, _bound(histogram.bucket_of(seconds))])] += 1
    pending[histogram.name, json.dumps([*labels, _SUM])] += seconds


class Totals:
    """What has been counted so far."""

    def __init__(self, session: Session) -> None:
        self._numbers: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        for name, labels, value in session.execute(select(TotalRow.name, TotalRow.labels, TotalRow.value)):
            self._numbers[name][tuple(json.loads(labels))] = value

    def of_counter(self, counter: Counter) -> Series:
        return self._numbers[counter.name]

    def of_histogram(self, histogram: Histogram) -> dict[tuple[str, ...], tuple[list[tuple[str, float]], float]]:
        """By labels: upper bounds with the number of values below them, and the sum of all values."""
        numbers = self._numbers[histogram.name]
        found = {}
        for labels in sorted({key[:-1] for key in numbers}):
            below = 0.0
            buckets = []
            for bound in (*histogram.buckets, math.inf):
                below += numbers.get((*labels, _bound(bound)), 0.0)
                buckets.append((_bound(bound), below))
            found[labels] = (buckets, numbers.get((*labels, _SUM), 0.0))
        return found


def _adding(statement: Any) -> Executable:  # noqa: ANN401 - two classes of one form without a common base
    adding: Executable = statement.on_conflict_do_update(
        index_elements=[TotalRow.name, TotalRow.labels], set_={"value": TotalRow.value + statement.excluded.value}
    )
    return adding


# Built once, and run for each row in turn: a statement with all rows in it would be built anew each time.
_ADD = {dialect: _adding(insert(TotalRow)) for dialect, insert in UPSERTS.items()}


def _bound(value: float) -> str:
    return "+Inf" if value == math.inf else str(value)


def _pending(session: Session) -> _Numbers:
    pending: _Numbers = session.info.setdefault(_KEY, defaultdict(float))
    return pending


@event.listens_for(TenantSession, "before_commit")
def _add(session: Session) -> None:
    if session.in_nested_transaction() or not session.info.get(_KEY):
        return
    numbers: _Numbers = session.info.pop(_KEY)
    for counter in COUNTERS:
        if counter.at_most:
            _merge_surplus(session, counter, numbers)
    rows = [{"name": name, "labels": labels, "value": value} for (name, labels), value in sorted(numbers.items())]
    connection = session.connection()
    connection.execute(_ADD[connection.dialect.name], rows)


def _merge_surplus(session: Session, counter: Counter, numbers: _Numbers) -> None:
    """Count under `other` what would be new beyond the number of series that a counter may have."""
    given = {labels for name, labels in numbers if name == counter.name}
    if not given:
        return
    of_counter = TotalRow.name == counter.name
    known = session.scalars(select(TotalRow.labels).where(of_counter, TotalRow.labels.in_(given)))
    for labels in sorted(given.difference(known)):
        series = session.scalar(select(func.count()).select_from(TotalRow).where(of_counter)) or 0
        if series >= counter.at_most:
            other = json.dumps([*json.loads(labels)[:-1], _OTHER])
            numbers[counter.name, other] += numbers.pop((counter.name, labels))
