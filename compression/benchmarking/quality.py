"""How far the result's outputs are from the original's, and how often each is right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from compression.benchmarking import statistics
from compression.benchmarking.embeddings import Embeddings
from compression.benchmarking.spec import Task
from compression.benchmarking.tasks import Score, is_scores, judge
from compression.context import Context
from compression.data import Batch
from compression.fresh_process import Array
from compression.result import Metric

# What single precision resolves, 20 log10(2^23): outputs that differ less are as good as equal.
_MAX_SQNR = 138.5


@dataclass
class _Distance:
    """Sums over one output, in double precision."""

    dot: float = 0.0
    original: float = 0.0
    result: float = 0.0
    noise: float = 0.0

    def add(self, original: Array, result: Array) -> None:
        self.dot += float(np.vdot(original, result))
        self.original += float(np.vdot(original, original))
        self.result += float(np.vdot(result, result))
        noise = result - original
        self.noise += float(np.vdot(noise, noise))

    @property
    def cosine(self) -> float:
        if self.noise == 0:
            return 1.0
        scale = math.sqrt(self.original) * math.sqrt(self.result)
        return self.dot / scale if scale else 0.0

    @property
    def sqnr(self) -> float:
        if self.noise == 0:
            return _MAX_SQNR
        if self.original == 0:
            return -_MAX_SQNR
        return max(-_MAX_SQNR, min(_MAX_SQNR, 10 * math.log10(self.original / self.noise)))


@dataclass
class Comparison:
    """Collects the outputs of both models, batch by batch; what is kept is small.

    Cosine similarity is that of each floating-point output over all samples, and so is SQNR, the power of the
    original's output over that of the difference; of several outputs the worst counts. The class is the largest entry
    of the first output, where that has the shape (samples, classes). By labels or targets the first output is judged.
    """

    task: Task = "auto"
    samples: int = 0
    classified: int = 0
    agreed: int = 0
    skipped: int = 0
    """Outputs of a batch left out of the distances because the original gives NaN or infinity itself."""
    broken: int = 0
    """Outputs of a batch where only the result gives NaN or infinity."""
    distances: dict[int, _Distance] = field(default_factory=dict)
    score: Score | str = "there are no samples"
    """What judges the first output, or why nothing does."""

    def add(self, original: Sequence[Any], result: Sequence[Any], batch: Batch) -> None:
        """Take in what both models give for one batch."""
        count = len(batch)
        for position, (ours, theirs) in enumerate(zip(original, result, strict=True)):
            if _is_float(ours) and _is_float(theirs) and ours.shape == theirs.shape and ours.size:
                self._add_distance(position, ours.astype(np.float64), theirs.astype(np.float64))
        if original and is_scores(original[0], count) and is_scores(result[0], count):
            self.classified += count
            self.agreed += int((original[0].argmax(axis=1) == result[0].argmax(axis=1)).sum())
        if original:
            self._judge(original[0], result[0], batch)
        self.samples += count

    def _judge(self, ours: Any, theirs: Any, batch: Batch) -> None:  # noqa: ANN401 - outputs may be lists and maps
        if not isinstance(ours, np.ndarray) or not isinstance(theirs, np.ndarray) or ours.shape != theirs.shape:
            self.score = "the first outputs of the two models are no tensors of the same shape"
        elif not self.samples:
            self.score = _score(self.task, ours, batch)
        if not isinstance(self.score, str):
            self.score.add(ours, theirs, batch)

    def _add_distance(self, position: int, ours: Array, theirs: Array) -> None:
        if not np.isfinite(ours).all():
            self.skipped += 1
        elif not np.isfinite(theirs).all():
            self.broken += 1
        else:
            self.distances.setdefault(position, _Distance()).add(ours.ravel(), theirs.ravel())

    def judged(self, seed: int) -> list[Metric]:
        """Metrics against labels or targets, without those that NaN or infinity in an output leaves without a value."""
        found = [] if isinstance(self.score, str) else self.score.metrics(seed)
        return [metric for metric in found if _is_finite(metric)]

    def agreement(self) -> list[Metric]:
        """`top1_agreement` for classifiers, `cosine_similarity` and `sqnr` where they are defined."""
        found = []
        if self.classified:
            share = self.agreed / self.classified
            found.append(
                _comparison(
                    "top1_agreement",
                    "fraction",
                    share,
                    self.classified,
                    interval=statistics.proportion_interval(self.agreed, self.classified),
                )
            )
        if self.distances and not self.broken:
            worst_cosine = min(distance.cosine for distance in self.distances.values())
            worst_sqnr = min(distance.sqnr for distance in self.distances.values())
            found.append(_comparison("cosine_similarity", "ratio", worst_cosine, self.samples))
            found.append(_comparison("sqnr", "dB", worst_sqnr, self.samples))
        return found

    def notes(self) -> list[str]:
        """What the numbers leave out."""
        found = self.score.notes() if isinstance(self.score, Embeddings) else []
        if self.broken:
            found.append(
                "The result gives NaN or infinity where the original does not: it is not usable on such inputs."
            )
        if self.skipped:
            found.append(
                "The original gives NaN or infinity on some inputs; those are left out of cosine similarity and SQNR."
            )
        return found


def _score(task: Task, output: Array, batch: Batch) -> Score | str:
    if task != "embedding":
        return judge(task, output, batch)
    if output.dtype.kind != "f" or output.ndim != 2 or len(output) != len(batch):
        return "the first output does not hold one vector of floats for each sample"
    return Embeddings()


def _is_finite(metric: Metric) -> bool:
    return all(map(math.isfinite, (metric.original or 0.0, metric.result, *(metric.interval or ()))))


class Runs(Protocol):
    """What gives outputs for inputs, such as a model in ONNX Runtime."""

    def run(self, arrays: dict[str, Array], /) -> Sequence[Any]: ...


def compare(
    original: Runs,
    result: Runs,
    batches: Iterable[Batch],
    context: Context,
    *,
    task: Task = "auto",
    pad_to: int | None = None,
) -> Comparison:
    """Run both models over all batches.

    Args:
        original: The original.
        result: The result.
        batches: Samples, with or without labels.
        context: Asked between batches whether to stop.
        task: What the first output is judged by.
        pad_to: The batch size on which the models insist, or None: a smaller batch is filled with copies of its last
            sample, and what comes out for those is dropped.
    """
    comparison = Comparison(task)
    for batch in batches:
        context.check_cancelled()
        arrays = _padded(batch.inputs, pad_to)
        outputs = [[_cut(value, len(batch), pad_to) for value in model.run(arrays)] for model in (original, result)]
        comparison.add(outputs[0], outputs[1], batch)
    return comparison


def _padded(arrays: dict[str, Array], size: int | None) -> dict[str, Array]:
    if size is None:
        return arrays
    return {
        name: np.concatenate([value, np.repeat(value[-1:], size - len(value), axis=0)]) if len(value) < size else value
        for name, value in arrays.items()
    }


def _cut(value: Any, count: int, padded_to: int | None) -> Any:  # noqa: ANN401 - outputs may be lists and maps
    is_batch = isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == padded_to
    return value[:count] if is_batch else value


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _comparison(
    name: str, unit: str, value: float, samples: int, *, interval: tuple[float, float] | None = None
) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        direction="higher_is_better",
        original=None,
        result=value,
        interval=interval,
        interval_of=None if interval is None else "result",
        samples=samples,
    )
