"""A dataset as a model wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

from compression.data.base import Batch, Dataset
from compression.data.checks import check_finite, check_labels
from compression.data.synthetic import fixed_batch
from compression.errors import DataRejected
from compression.signature import DatasetSummary, ModelSummary, mismatches


class ModelFeed:
    """Batches whose arrays carry the names of the model's inputs, in the model's batch size where it fixes one.

    Values are checked as they pass, so that a run never rests on NaN or infinity.

    Args:
        dataset: The samples.
        model: What they are to be fed to.
        role: What they serve for, as error messages name it.
        whole_batches: Where the model fixes the batch, drop a rest of fewer samples instead of giving it as it is.

    Raises:
        DataRejected: `dataset_mismatch` with all that does not fit, or `labels_out_of_range`.
    """

    def __init__(self, dataset: Dataset, model: ModelSummary, role: str, *, whole_batches: bool = True) -> None:
        self._dataset = dataset
        self._whole_batches = whole_batches
        self._fixed = fixed_batch(model)
        problems = mismatches(model, dataset.summary)
        if self._fixed is not None and dataset.summary.samples < self._fixed:
            problems.append(f"the model takes {self._fixed} samples at a time, the dataset has fewer")
        if problems:
            raise DataRejected("dataset_mismatch", f"The {role} dataset does not fit the model: {'; '.join(problems)}.")
        check_labels(dataset.summary, model)
        arrays = dataset.summary.arrays
        single = len(arrays) == 1 and len(model.inputs) == 1
        self._names = {arrays[0].name: model.inputs[0].name} if single else {a.name: a.name for a in arrays}

    @classmethod
    def of(cls, dataset: Dataset, model: Callable[[], ModelSummary], role: str) -> Self:
        """The dataset itself where it is a feed, else one of it; `model` is asked for only then."""
        return dataset if isinstance(dataset, cls) else cls(dataset, model(), role)

    @property
    def summary(self) -> DatasetSummary:
        return self._dataset.summary

    @property
    def fixed_batch(self) -> int | None:
        """Samples that the model takes at a time, or None where its batch axis is open."""
        return self._fixed

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Like `Dataset.batches`; a batch axis that the model fixes replaces `batch_size`."""
        size = self._fixed or batch_size
        if limit is not None and self._fixed is not None:
            limit = max(limit, self._fixed)
        start = 0
        for batch in self._dataset.batches(size, limit):
            check_finite(batch, start)
            start += len(batch)
            if self._fixed is None or len(batch) == self._fixed or not self._whole_batches:
                yield Batch(
                    {self._names[name]: values for name, values in batch.inputs.items()}, batch.labels, batch.targets
                )
