"""Datasets of one run whose values are not on the same scale: pictures of 0 to 255 beside some of 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from compression.data.feed import ModelFeed

_SAMPLES = 64
_BATCH = 16
# How many times wider spread, or how many spreads away, makes another scale of it.
_FACTOR = 4.0


@dataclass(frozen=True)
class Spread:
    """Extremes, mean and standard deviation of an array's values."""

    low: float
    high: float
    mean: float
    deviation: float

    def differs(self, other: Spread) -> bool:
        """Whether the two cannot well be samples of the same."""
        wide, narrow = max(self.deviation, other.deviation), min(self.deviation, other.deviation)
        if wide == 0:
            return self.mean != other.mean
        return wide > _FACTOR * narrow or abs(self.mean - other.mean) > _FACTOR * wide

    def __str__(self) -> str:
        return f"[{self.low:.3g}, {self.high:.3g}] around {self.mean:.3g}"


def differing_ranges(feeds: Mapping[str, ModelFeed]) -> list[str]:
    """A sentence for each float input whose values lie elsewhere in calibration or training than in evaluation.

    Raises:
        DataRejected: As reading the samples may.
    """
    if "evaluation" not in feeds:
        return []
    wanted = dict(_spreads(feeds["evaluation"]))
    notes = []
    for role in ("calibration", "training"):
        for name, found in _spreads(feeds[role]) if role in feeds else ():
            if name in wanted and found.differs(wanted[name]):
                notes.append(
                    f"Input '{name}' is {found} in the {role} dataset and {wanted[name]} in the evaluation dataset: "
                    "what was learnt from the former may not fit the latter. Were both preprocessed alike?"
                )
    return notes


def _spreads(feed: ModelFeed) -> Iterator[tuple[str, Spread]]:
    """Of each float input, over the first samples."""
    seen: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = {}
    for batch in feed.batches(_BATCH, _SAMPLES):
        for name, values in batch.inputs.items():
            if values.dtype.kind == "f" and values.size:
                own = values.astype(np.float64)
                row = [own.size, own.min(), own.max(), own.sum(), np.square(own).sum()]
                seen.setdefault(name, []).append(np.array(row))
    for name, rows in seen.items():
        table = np.array(rows)
        count, total, squares = table[:, [0, 3, 4]].sum(0)
        mean = total / count
        deviation = math.sqrt(max(squares / count - mean**2, 0.0))
        yield name, Spread(float(table[:, 1].min()), float(table[:, 2].max()), float(mean), deviation)
