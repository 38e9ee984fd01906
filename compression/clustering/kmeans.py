"""One-dimensional k-means. Pure functions on arrays.

On sorted values every cluster is an interval, so that an iteration of Lloyd's algorithm needs no distances: the
borders are the midpoints of neighbouring centroids, a binary search finds them, and running sums give the means.
After one sort an iteration costs O(k log n), which makes the algorithm exact and fast for millions of weights.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Init = Literal["linear", "density", "random"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Clustering:
    """The outcome for one set of values.

    Attributes:
        values: The input with each element replaced by its centroid; same shape and element type.
        centroids: Distinct values in `values`, zero included where zeros were kept.
        mean_squared_error: Of the replacement, over all elements.
        iterations: Updates of the centroids until none moved; 0 where there was nothing to find.
    """

    values: Array
    centroids: int
    mean_squared_error: float
    iterations: int


def share(
    weight: Array, clusters: int, *, init: Init, keep_zeros: bool, max_iterations: int, rng: np.random.Generator
) -> Clustering:
    """Replace weights by at most `clusters` distinct values (Han et al. 2015, "Deep Compression", section 3).

    Args:
        weight: Finite floats of any shape.
        clusters: Upper bound on distinct values in the result, zero included.
        init: Where the centroids start; see `start`.
        keep_zeros: Zeros stay zero and take one of the values, if there are any.
        max_iterations: Upper bound on centroid updates.
        rng: Used by `init="random"` alone.
    """
    flat = weight.reshape(-1)
    moving = flat[flat != 0] if keep_zeros else flat
    has_zeros = moving.size < flat.size
    ordered = np.sort(moving.astype(np.float64 if moving.dtype == np.float64 else np.float32))
    room = clusters - has_zeros
    if _distinct(ordered) <= room:
        return Clustering(weight, _distinct(ordered) + has_zeros, 0.0, 0)
    centroids, iterations = lloyd(ordered, start(ordered, room, init, rng), max_iterations)
    result = np.zeros_like(flat)
    borders = midpoints(centroids).astype(ordered.dtype)
    rounded = centroids.astype(weight.dtype)
    error = 0.0
    for begin in range(0, flat.size, _CHUNK):
        part = flat[begin : begin + _CHUNK]
        replaced = rounded[np.searchsorted(borders, part.astype(ordered.dtype))]
        if keep_zeros:
            replaced = np.where(part == 0, part, replaced)
        result[begin : begin + _CHUNK] = replaced
        error += float(np.square(replaced.astype(np.float64) - part.astype(np.float64)).sum())
    return Clustering(result.reshape(weight.shape), len(np.unique(result)), error / flat.size, iterations)


def start(ordered: Array, clusters: int, init: Init, rng: np.random.Generator) -> Floats:
    """Ascending start centroids (Han et al. 2015, section 3.2).

    Args:
        ordered: (n,) sorted values, at least `clusters` of them distinct.
        clusters: How many centroids, at least 1.
        init: `linear` spaces them evenly from the least to the greatest value, `density` evenly over the ranks,
            `random` takes distinct values by chance (Forgy).
        rng: Source of chance.
    """
    match init:
        case "linear":
            return np.linspace(ordered[0], ordered[-1], clusters, dtype=np.float64)
        case "density":
            ranks = ((np.arange(clusters) + 0.5) / clusters * ordered.size).astype(np.int64)
            return ordered[ranks].astype(np.float64)
        case "random":
            first = np.flatnonzero(np.diff(ordered, prepend=-np.inf))
            return np.sort(ordered[rng.choice(first, clusters, replace=False)]).astype(np.float64)
        case _:
            assert_never(init)


def lloyd(ordered: Array, centroids: Floats, max_iterations: int) -> tuple[Floats, int]:
    """Move centroids to the means of their clusters until no value changes its cluster.

    A centroid that ends up with no values goes to the cluster with the largest squared error and takes over the part
    above that cluster's mean, so that none is wasted.

    Args:
        ordered: (n,) sorted values, at least k of them distinct.
        centroids: (k,) ascending.
        max_iterations: Upper bound on updates.

    Returns:
        The ascending centroids, and how many updates were made.

    >>> lloyd(np.array([0.0, 1.0, 9.0, 11.0]), np.array([0.0, 11.0]), 100)
    (array([ 0.5, 10. ]), 1)
    """
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    edges = np.empty(centroids.size + 1, np.int64)
    edges[0], edges[-1] = 0, ordered.size
    previous = None
    for iteration in range(max_iterations):
        # The borders take the values' own type: a search for wider ones would copy all values in every iteration.
        edges[1:-1] = ordered.searchsorted(midpoints(centroids).astype(ordered.dtype, copy=False), side="right")
        if previous is not None and (edges == previous).all():
            if (edges[1:] > edges[:-1]).all():
                return centroids, iteration
            edges = _refill(ordered, edges)
        previous = edges.copy()
        counts = edges[1:] - edges[:-1]
        totals = sums[edges]
        means = (totals[1:] - totals[:-1]) / np.maximum(counts, 1)
        centroids = means if counts.all() else np.where(counts > 0, means, centroids)
    return centroids, max_iterations


def _refill(ordered: Array, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Borders with as many clusters, where every empty one became the upper part of a cluster with a large error.

    Args:
        ordered: (n,) sorted values.
        edges: (k + 1,) ascending indices; cluster i holds `ordered[edges[i]:edges[i + 1]]`.
    """
    full = np.unique(edges)
    while full.size < edges.size:
        parts = [ordered[begin:end].astype(np.float64) for begin, end in itertools.pairwise(full)]
        worst = int(np.argmax([np.square(part - part.mean()).sum() for part in parts]))
        cut = full[worst] + np.searchsorted(parts[worst], parts[worst].mean(), side="right")
        full = np.insert(full, worst + 1, cut)
    return full


def midpoints(centroids: Floats) -> Floats:
    """(k - 1,) borders between neighbouring clusters. A value on a border belongs to the lower cluster."""
    middle: Floats = (centroids[1:] + centroids[:-1]) / 2
    return middle


def _distinct(ordered: Array) -> int:
    return 0 if ordered.size == 0 else 1 + int(np.count_nonzero(np.diff(ordered)))
