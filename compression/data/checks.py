"""Checks that read the samples, and whether labels fit a model."""

from __future__ import annotations

import math

import numpy as np

from compression.data.base import TARGETS, Batch
from compression.data.source import DataSource, open_dataset
from compression.errors import DataRejected
from compression.signature import DatasetSummary, ModelSummary, TensorSpec, label_problems, unfit

_BYTES_AT_A_TIME = 16 << 20


def inspect_dataset(source: DataSource) -> DatasetSummary:
    """Read the whole dataset once and describe it.

    Raises:
        DataRejected: `not_a_dataset`, `archive_unsafe`, `empty_dataset`, `lengths_differ`, `labels_invalid`,
            `dtype_not_supported`, `array_layout_not_supported`, `image_unreadable`, `preprocessing_missing` or
            `non_finite_values`.
    """
    dataset = open_dataset(source)
    reason = unfit(dataset.summary)
    if reason is not None:
        raise DataRejected("not_a_dataset", f"The dataset cannot be described. {reason}")
    start = 0
    for batch in dataset.batches(_batch_size(dataset.summary)):
        check_finite(batch, start)
        start += len(batch)
    return dataset.summary


def _batch_size(summary: DatasetSummary) -> int:
    """Samples that fill a comfortable amount of memory."""
    row = sum(np.dtype(array.dtype).itemsize * _elements(array) for array in summary.arrays)
    return max(1, _BYTES_AT_A_TIME // max(row, 1))


def _elements(array: TensorSpec) -> int:
    return math.prod(axis for axis in (array.shape or ())[1:] if isinstance(axis, int))


def check_finite(batch: Batch, start: int) -> None:
    """Raise `DataRejected` `non_finite_values` at the first NaN or infinity; `start` is the batch's first index."""
    arrays = dict(batch.inputs)
    if batch.targets is not None:
        arrays[TARGETS] = batch.targets
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            where = np.argwhere(~np.isfinite(values))[0]
            index = [int(where[0]) + start, *(int(axis) for axis in where[1:])]
            found = values[tuple(where)]
            raise DataRejected("non_finite_values", f"Array '{name}' holds {found} at index {index}.")


def check_labels(data: DatasetSummary, model: ModelSummary) -> None:
    """Refuse labels that the model, if it is a classifier, cannot give.

    Raises:
        DataRejected: `labels_out_of_range`.
    """
    problems = label_problems(model, data)
    if problems:
        raise DataRejected("labels_out_of_range", f"Labels do not fit the model: {'; '.join(problems)}.")
