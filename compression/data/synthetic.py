"""Inputs made up from a model's signature, where there is no dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from compression.data.base import SUPPORTED, Array, Batch
from compression.errors import DataRejected
from compression.signature import Dimension, ModelSummary, TensorSpec

_SPATIAL = 64
_SEQUENCE = 16


def synthetic_batches(model: ModelSummary, samples: int, seed: int, batch_size: int = 32) -> Iterator[Batch]:
    """Random inputs that fit the signature: normal floats, bytes over their range, other integers 0 or 1.

    Small integers are valid as token ids, masks and positions alike. An open first axis is the batch; other open axes
    get 64 entries where they look like rows and columns of a picture, else 16, and the same axis name the same length
    everywhere. A batch axis that the model fixes decides the size of the batches.

    Raises:
        DataRejected: `dtype_not_supported` for inputs that are no plain numbers.
    """
    rng = np.random.default_rng(seed)
    fixed = fixed_batch(model)
    lengths = _open_axes(model)
    made = 0
    while made < samples:
        count = fixed or min(batch_size, samples - made)
        yield Batch({spec.name: _input(spec, count, lengths, rng) for spec in model.inputs}, None)
        made += count


def fixed_batch(model: ModelSummary) -> int | None:
    """Samples that the model takes at a time, or None where its batch axis is open."""
    for spec in model.inputs:
        if spec.shape and isinstance(spec.shape[0], int):
            return spec.shape[0]
    return None


def _open_axes(model: ModelSummary) -> dict[str, int]:
    """Lengths of the named axes other than the batch; the input of the lowest rank decides."""
    lengths: dict[str, int] = {}
    for shape in sorted((spec.shape for spec in model.inputs if spec.shape), key=len):
        for axis in shape[1:]:
            if isinstance(axis, str):
                lengths.setdefault(axis, _default_length(len(shape)))
    return lengths


def _default_length(rank: int) -> int:
    return _SPATIAL if rank >= 4 else _SEQUENCE


def _input(spec: TensorSpec, count: int, lengths: Mapping[str, int], rng: np.random.Generator) -> Array:
    if spec.dtype not in SUPPORTED:
        raise DataRejected("dtype_not_supported", f"No values can be made up for input '{spec.name}' ({spec.dtype}).")
    axes = spec.shape if spec.shape is not None else (None,)
    shape = [_length(axis, position, len(axes), count, lengths) for position, axis in enumerate(axes)]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)


def _length(axis: Dimension, position: int, rank: int, count: int, lengths: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    if position == 0:
        return count
    return lengths[axis] if axis is not None else _default_length(rank)
