"""How well vectors that stand for samples keep their meaning: by their targets, their labels, and their neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compression.benchmarking import statistics
from compression.benchmarking.tasks import hits
from compression.data import Batch
from compression.result import Metric

Array = npt.NDArray[Any]

_NEIGHBOURS = 10
# All pairs of these are compared; 2,000 resolve a share to about 2 points.
_MOST_COMPARED = 2000
_MOST_BYTES = 256 << 20


class Embeddings:
    """`neighbor_agreement`; with labels or targets `retrieval_at_1`; with targets `target_cosine`.

    Agreement is the share of each sample's 10 nearest neighbours by cosine that the original and the result have in
    common. Retrieval counts the samples whose nearest neighbour has the same label (recall at 1, Musgrave 2020), or,
    with targets, whose own target is nearer than all others'. Both are over at most 2,000 samples, evenly spread.
    """

    def __init__(self) -> None:
        self._sides: tuple[list[Array], list[Array]] = ([], [])
        self._targets: list[Array] = []
        self._labels: list[Array] = []
        self._room = _MOST_BYTES
        self._skipped = False

    def add(self, original: Array, result: Array, batch: Batch) -> None:
        """Take in the vectors (n, width) of both models for one batch."""
        self._room -= original.nbytes + result.nbytes
        if self._room < 0:
            self._skipped = True
            return
        for kept, side in zip(self._sides, (original, result), strict=True):
            kept.append(_unit(side))
        if batch.targets is not None and batch.targets.shape == original.shape and batch.targets.dtype.kind == "f":
            self._targets.append(_unit(batch.targets))
        if batch.labels is not None:
            self._labels.append(batch.labels)

    def metrics(self, seed: int) -> list[Metric]:
        if not self._sides[0]:
            return []
        original, result = (np.concatenate(side) for side in self._sides)
        count = len(original)
        chosen = np.arange(min(count, _MOST_COMPARED)) * count // min(count, _MOST_COMPARED)
        found = []
        if self._targets:
            targets = np.concatenate(self._targets)
            found.append(_target_cosine(original, result, targets, seed))
            if len(chosen) > 1:
                before, after = (_own_first(side[chosen], targets[chosen]) for side in (original, result))
                found.append(hits("retrieval_at_1", before, after, seed))
        elif self._labels and len(chosen) > 1:
            labels = np.concatenate(self._labels)[chosen]
            before, after = (labels[nearest(side[chosen], 1)[:, 0]] == labels for side in (original, result))
            found.append(hits("retrieval_at_1", before, after, seed))
        if len(chosen) > 1:
            found.append(_agreement(original[chosen], result[chosen], seed))
        return found

    def notes(self) -> list[str]:
        """What the numbers leave out."""
        kept = sum(map(len, self._sides[0]))
        return [
            f"Embeddings were compared on the first {kept:,} samples, which fill the memory for that."
        ] * self._skipped


def nearest(vectors: Array, count: int) -> Array:
    """Indices (n, count) of the nearest others by cosine, nearest first.

    Args:
        vectors: (n, width) of length 1, n above 1.
        count: How many; at most n - 1.
    """
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    order: Array = np.argsort(-likeness, axis=1, kind="stable")
    return order[:, :count]


def _own_first(vectors: Array, targets: Array) -> Array:
    """Whether no other target is nearer to a vector than its own; equal targets do no harm."""
    likeness = vectors @ targets.T
    own = np.diagonal(likeness)
    nearest_one: Array = likeness.max(axis=1)
    return own >= nearest_one - np.finfo(np.float32).eps


def _target_cosine(original: Array, result: Array, targets: Array, seed: int) -> Metric:
    before, after = ((side * targets).sum(axis=1, dtype=np.float64) for side in (original, result))
    difference, interval = statistics.mean_difference(before, after, seed)
    return Metric(
        name="target_cosine",
        unit="ratio",
        direction="higher_is_better",
        original=float(before.mean()),
        result=float(after.mean()),
        interval=interval,
        interval_of="difference",
        samples=len(before),
        verdict=statistics.difference_verdict(difference, interval),
    )


def _agreement(original: Array, result: Array, seed: int) -> Metric:
    count = min(_NEIGHBOURS, len(original) - 1)
    ours, theirs = nearest(original, count), nearest(result, count)
    shared = np.array([len(np.intersect1d(a, b)) for a, b in zip(ours, theirs, strict=True)]) / count
    return Metric(
        name="neighbor_agreement",
        unit="fraction",
        direction="higher_is_better",
        original=None,
        result=float(shared.mean()),
        interval=statistics.mean_interval(shared, seed),
        interval_of="result",
        samples=len(shared),
    )


def _unit(vectors: Array) -> Array:
    """The same directions with length 1, in single precision; zeros stay zeros."""
    values = vectors.astype(np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)
