"""What all kinds of datasets share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compression.errors import DataRejected
from compression.signature import DatasetSummary

Array = npt.NDArray[Any]
LABELS = "labels"
TARGETS = "targets"
MAX_LABEL = 10_000_000
SUPPORTED = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}
)


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        inputs: Arrays by name; the first axis is the sample.
        labels: (n,) int64 class indices, or None where the dataset has none.
        targets: (n, …) what the model's output should be where it is no class: floats, or int64 tokens, one for each
            position; None where the dataset has none.
    """

    inputs: dict[str, Array]
    labels: npt.NDArray[np.int64] | None
    targets: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Dataset(Protocol):
    """Samples that are read as they are asked for, never all at once."""

    @property
    def summary(self) -> DatasetSummary: ...

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Samples in batches of `batch_size`, the last one maybe smaller.

        With a `limit` below the number of samples that many are taken evenly over the whole dataset: files are often
        ordered by class, and the first ones would be of a single class.
        """


def spread(samples: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Ascending indices of at most `limit` samples, evenly over all of them.

    >>> spread(10, 4).tolist()
    [0, 2, 5, 7]
    """
    if limit is None or limit >= samples:
        return np.arange(samples, dtype=np.int64)
    return np.arange(limit, dtype=np.int64) * samples // limit


def checked_labels(labels: Array) -> npt.NDArray[np.int64]:
    """Class indices as int64.

    Raises:
        DataRejected: `labels_invalid` when they are no whole numbers from 0 on, one for each sample.
    """
    if labels.dtype.kind not in "iu":
        raise DataRejected("labels_invalid", f"'{LABELS}' must hold whole numbers, not {labels.dtype.name}.")
    if labels.ndim != 1:
        raise DataRejected("labels_invalid", f"'{LABELS}' must have one axis, not the shape {list(labels.shape)}.")
    wrong = np.flatnonzero((labels < 0) | (labels > MAX_LABEL))
    if wrong.size:
        raise DataRejected(
            "labels_invalid",
            f"'{LABELS}' must lie between 0 and {MAX_LABEL}; at index {wrong[0]} it is {labels[wrong[0]]}.",
        )
    return labels.astype(np.int64)


def common_length(shapes: dict[str, Sequence[int]]) -> int:
    """The number of samples, which all arrays must agree on.

    Raises:
        DataRejected: `empty_dataset` or `lengths_differ`.
    """
    if not set(shapes) - {LABELS, TARGETS}:
        raise DataRejected("empty_dataset", f"The dataset holds no input array, only {sorted(shapes) or 'nothing'}.")
    scalars = [name for name, shape in shapes.items() if not shape]
    if scalars:
        raise DataRejected("lengths_differ", f"Array '{scalars[0]}' has no axes; the first axis must be the sample.")
    lengths = {name: shape[0] for name, shape in shapes.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"'{name}' {length}" for name, length in sorted(lengths.items()))
        raise DataRejected("lengths_differ", f"The arrays hold different numbers of samples: {listed}.")
    samples = next(iter(lengths.values()))
    if samples == 0:
        raise DataRejected("empty_dataset", "The dataset holds no samples.")
    return samples


def check_dtype(name: str, dtype: str) -> None:
    """Raise `DataRejected` `dtype_not_supported` for an element type that is no plain number."""
    if dtype not in SUPPORTED:
        raise DataRejected(
            "dtype_not_supported", f"Array '{name}' holds {dtype}; supported are {', '.join(sorted(SUPPORTED))}."
        )
