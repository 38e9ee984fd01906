"""Training samples by index, from a feed that only knows how to go forward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.errors import DataRejected

Array = npt.NDArray[Any]
_READ_AT_ONCE = 256


@dataclass(frozen=True)
class TrainingBatch:
    """Samples on the device where they are used.

    Attributes:
        inputs: One tensor for each input of the model, in its order; the first axis is the sample.
        target: (n,) or (n, positions) int64 classes, floats of the output's shape, or None without labels.
        teacher: The teacher's outputs for these samples, or None.
    """

    inputs: tuple[torch.Tensor, ...]
    target: torch.Tensor | None
    teacher: tuple[torch.Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])


class TrainingSet:
    """Samples in files of the run's own folder, read by index through the page cache: memory does not grow with them.

    Args:
        inputs: Arrays in the order of the model's inputs, of equal length.
        target: Labels or targets of equal length, or None.
    """

    def __init__(self, inputs: tuple[Array, ...], target: Array | None) -> None:
        self._inputs = inputs
        self._target = target

    def __len__(self) -> int:
        return len(self._inputs[0])

    @property
    def has_target(self) -> bool:
        return self._target is not None

    def batch(self, indices: npt.NDArray[np.int64], device: str | torch.device = "cpu") -> TrainingBatch:
        """The samples at `indices`, in that order."""
        target = None if self._target is None else torch.from_numpy(self._target[indices]).to(device)
        return TrainingBatch(tuple(torch.from_numpy(array[indices]).to(device) for array in self._inputs), target)

    @classmethod
    def read(
        cls,
        feed: ModelFeed,
        input_names: tuple[str, ...],
        context: Context,
        limit: int | None,
        *,
        prefer_targets: bool = False,
    ) -> TrainingSet:
        """Read every sample once, checked as it passes.

        Args:
            feed: The training dataset.
            input_names: The model's inputs, in its order.
            context: Its folder holds the samples from now on.
            limit: At most so many samples; None takes all.
            prefer_targets: Take `targets` where the dataset has `labels` too.

        Raises:
            DataRejected: `dataset_mismatch` when an input has no array, `non_finite_values`.
        """
        folder = context.workdir / "training"
        folder.mkdir(parents=True, exist_ok=True)
        samples = feed.summary.samples
        if limit is not None:
            # The feed gives a whole batch at least where the model fixes its size.
            samples = min(samples, max(limit, feed.fixed_batch or 1))
        files: dict[str, Array] = {}
        start = 0
        for batch in feed.batches(_READ_AT_ONCE, limit):
            context.check_cancelled()
            columns: dict[str, Array] = dict(batch.inputs)
            first, second = (batch.targets, batch.labels) if prefer_targets else (batch.labels, batch.targets)
            target = first if first is not None else second
            if target is not None:
                columns[_TARGET] = target
            for name, values in columns.items():
                if name not in files:
                    files[name] = _file(folder / f"{len(files)}.npy", samples, values)
                files[name][start : start + len(values)] = values
            start += len(batch)
        kept = {name: values[:start] for name, values in files.items()}
        return cls(tuple(_column(kept, name) for name in input_names), kept.get(_TARGET))


_TARGET = ""  # no input of a model has an empty name


def _file(path: Path, samples: int, like: Array) -> Array:
    path.unlink(missing_ok=True)  # an earlier step's; whoever still has it open keeps it
    return np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=(samples, *like.shape[1:]))


def _column(columns: Mapping[str, Array], name: str) -> Array:
    if name not in columns:
        raise DataRejected("dataset_mismatch", f"The training dataset has no array for the input '{name}'.")
    return columns[name]


@dataclass(frozen=True)
class Split:
    """Which samples train and which validate; indices into a `TrainingSet`."""

    training: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]

    @classmethod
    def of(cls, samples: int, validation_share: float, rng: np.random.Generator, batch: int = 1) -> Split:
        """A random split; at least one batch stays on either side where a share is asked for.

        Args:
            samples: How many there are.
            validation_share: Share of them that validates, rounded up to whole batches.
            rng: Source of chance.
            batch: Samples that the model takes at a time.

        Raises:
            DataRejected: `dataset_too_small` when there are too few samples for that.
        """
        held_out = math.ceil(samples * validation_share / batch) * batch
        if samples - held_out < batch:
            at_once = f", of which the model takes {batch} at a time" if batch > 1 else ""
            cure = " or validation_share 0" if held_out and samples >= batch else ""
            raise DataRejected(
                "dataset_too_small",
                f"The training dataset has {samples} sample(s){at_once}; with a validation_share of {validation_share} "
                f"too few are left to train on. Give more samples{cure}.",
            )
        order = rng.permutation(samples).astype(np.int64)
        return cls(np.sort(order[held_out:]), np.sort(order[:held_out]))


def shuffled(
    indices: npt.NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """All indices in random order, `batch_size` at a time; a rest smaller than a batch waits for another epoch."""
    order = rng.permutation(indices)
    for begin in range(0, len(order) - batch_size + 1, batch_size):
        yield order[begin : begin + batch_size]


def in_order(indices: npt.NDArray[np.int64], batch_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """All indices as they are, `batch_size` at a time, the last batch maybe smaller."""
    for begin in range(0, len(indices), batch_size):
        yield indices[begin : begin + batch_size]
