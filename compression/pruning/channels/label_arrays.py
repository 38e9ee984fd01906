"""Label arrays: for every element of a tensor, which channel it belongs to.

A label array has the rank of its tensor. Along an axis it has the tensor's length where labels differ, else length 1.
An array of one element says that no part of the tensor can be removed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compression.pruning.channels.identities import FROZEN, Identities, Labels


def none(rank: int) -> Labels:
    """The labels of a tensor of which nothing can be removed."""
    return np.full((1,) * rank, FROZEN, np.int64)


def varying(labels: Labels) -> tuple[int, ...]:
    """The axes along which labels differ."""
    return tuple(axis for axis, length in enumerate(labels.shape) if length > 1)


def compress(labels: Labels) -> Labels:
    """The same labels with length 1 along every axis where they are equal."""
    for axis in varying(labels):
        first = labels.take([0], axis)
        if (labels == first).all():
            labels = first
    return labels


def expand(labels: Labels, shape: Sequence[int], axes: Sequence[int]) -> Labels:
    """Labels written out to the tensor's lengths along some axes."""
    full = [shape[axis] if axis in axes else length for axis, length in enumerate(labels.shape)]
    return np.broadcast_to(labels, full)


def unify(ids: Identities, labels: Labels, axes: Sequence[int]) -> Labels:
    """Join the channels that lie along some axes; the labels that are left, with length 1 along them."""
    axes = [axis for axis in axes if labels.shape[axis] > 1]
    if not axes:
        return labels
    first = labels
    for axis in axes:
        first = first.take([0], axis)
    ids.union(labels, first)
    return compress(ids.find(first))


def reshape(labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
    """Labels after a reshape that keeps the order of elements.

    Axes are matched in blocks of equal products, so only blocks in which labels differ are written out.

    >>> reshape(np.array([[[5], [6]]]), (4, 2, 3), (4, 6)).tolist()
    [[5, 5, 5, 6, 6, 6]]
    """
    if math.prod(old) == 0:
        return none(len(new))
    parts_old: list[int] = []
    parts_new: list[int] = []
    for olds, news in _blocks(old, new):
        differs = any(labels.shape[axis] > 1 for axis in olds)
        parts_old += [old[axis] if differs else 1 for axis in olds]
        parts_new += [new[axis] if differs else 1 for axis in news]
    return compress(np.broadcast_to(labels, parts_old).reshape(parts_new))


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new axes that hold the same number of elements, as short as possible."""
    blocks: list[tuple[list[int], list[int]]] = []
    left = right = 0
    while left < len(old) or right < len(new):
        olds, news = [], []
        size_old = size_new = 1
        if left < len(old):
            olds, size_old, left = [left], old[left], left + 1
        if right < len(new) and (size_old != 1 or new[right] == 1 or not olds):
            news, size_new, right = [right], new[right], right + 1
        while size_old != size_new:
            if size_old < size_new:
                olds.append(left)
                size_old, left = size_old * old[left], left + 1
            else:
                news.append(right)
                size_new, right = size_new * new[right], right + 1
        blocks.append((olds, news))
    return blocks


def aligned(labels: Labels, rank: int) -> Labels:
    """Labels of an operand as broadcasting aligns it with a result of higher rank."""
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
