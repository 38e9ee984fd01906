"""What models are run on while they are measured: real samples where there are any."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from compression.benchmarking.spec import BenchmarkSpec
from compression.data import Batch, Dataset, synthetic_batches
from compression.data.synthetic import fixed_batch
from compression.fresh_process import Array
from compression.signature import ModelSummary

_SYNTHETIC_SAMPLES = 32
_EVALUATION_BATCH_BYTES = 4 << 20
_MAX_EVALUATION_BATCH = 256


class Inputs:
    """Batches to time, and batches to compare outputs on.

    Args:
        original: Of the original.
        compressed: Of the result.
        evaluation: Samples that fit the original; None to make inputs up.
        spec: Batch size and number of samples.
        seed: Of made-up inputs.

    Attributes:
        fixed: The batch size that the models insist on; None where their batch axis is open.
        batch_size: Samples in a timed call.

    Raises:
        DataRejected: by its methods, `dtype_not_supported` where no inputs can be made up.
    """

    def __init__(
        self,
        original: ModelSummary,
        compressed: ModelSummary,
        evaluation: Dataset | None,
        spec: BenchmarkSpec,
        seed: int,
    ) -> None:
        self.fixed = fixed_batch(original)
        self.batch_size = self.fixed or spec.batch_size
        self._original = original
        self._compressed = compressed
        self._evaluation = evaluation
        self._limit = spec.evaluation_samples
        self._seed = seed

    def timed(self, batch_size: int | None = None) -> dict[str, Array]:
        """One batch by input name, of exactly so many samples, or of `batch_size`."""
        size = batch_size or self.batch_size
        if self._evaluation is None:
            return next(synthetic_batches(self._original, size, self._seed, size)).inputs
        batch = next(self._evaluation.batches(size, size))
        rows = np.arange(size) % len(batch)
        arrays = {name: values[rows] for name, values in batch.inputs.items()}
        if len(arrays) == 1 and len(self._original.inputs) == 1:
            arrays = {self._original.inputs[0].name: next(iter(arrays.values()))}
        return arrays

    def compared(self) -> Iterator[Batch]:
        """Batches to compare outputs on."""
        size = self.fixed or self._comparison_batch()
        if self._evaluation is None:
            return synthetic_batches(self._original, _SYNTHETIC_SAMPLES, self._seed, size)
        return self._evaluation.batches(size, self._limit)

    def _comparison_batch(self) -> int:
        # These take their scale from the whole batch: only batches of the size in use give the accuracy in use.
        if any(operator.rpartition("::")[2].startswith("Dynamic") for operator in self._compressed.operators):
            return self.batch_size
        sample = sum(array.nbytes for array in self.timed().values()) / self.batch_size
        return max(1, min(_MAX_EVALUATION_BATCH, math.floor(_EVALUATION_BATCH_BYTES / max(sample, 1))))
