"""How well the original and the result do what they are for, judged by labels or targets.

Each kind of task collects what it needs batch by batch and turns it into metrics at the end. All of them compare the
two models sample by sample: the interval is of `result - original`.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compression.benchmarking import statistics
from compression.benchmarking.spec import Task
from compression.data import Batch
from compression.result import Metric

Array = npt.NDArray[Any]

_CLASSES_FOR_TOP_5 = 20
_TOLERANCE = 1e-3
_LARGEST_EXPONENT = 700.0


class Score(Protocol):
    """Collects what both models give for the samples of one dataset."""

    def add(self, original: Array, result: Array, batch: Batch) -> None:
        """Take in the first output of both models for one batch."""

    def metrics(self, seed: int) -> list[Metric]:
        """What that amounts to."""


def judge(task: Task, output: Array, batch: Batch) -> Score | str:
    """The score for a task other than `embedding`, or why there can be none; `auto` goes by what the batch holds.

    Args:
        task: What the model is for.
        output: (n, …) the original's first output for the batch.
        batch: With its labels or targets.
    """
    if batch.labels is None and batch.targets is None:
        return "the evaluation data has neither labels nor targets"
    if output.dtype.kind != "f" or output.ndim < 1 or len(output) != len(batch):
        return "the first output does not hold floats for each sample"
    floats = batch.targets is not None and batch.targets.dtype.kind == "f"
    if task == "auto":
        task = "classification" if batch.labels is not None else "regression" if floats else "tokens"
    if task == "classification":
        return _classification(output, batch)
    if task == "regression":
        return _regression(output, batch, floats=floats)
    return _sequences(task, output, batch, floats=floats)


def _classification(output: Array, batch: Batch) -> Score | str:
    if batch.labels is None:
        return "the evaluation data has no labels"
    return Classes() if is_scores(output, len(batch)) else _NO_SCORES


def _regression(output: Array, batch: Batch, *, floats: bool) -> Score | str:
    targets = batch.targets
    if targets is None or not floats:
        return "the evaluation data has no floats in 'targets'"
    if targets.size != output.size:
        return _OTHER_SHAPE.format(list(targets.shape[1:]), list(output.shape[1:]))
    return Regression()


def _sequences(task: Task, output: Array, batch: Batch, *, floats: bool) -> Score | str:
    targets = batch.targets
    if targets is None or floats:
        return "the evaluation data has no whole numbers in 'targets'"
    if task == "ctc":
        if output.ndim != 3 or targets.ndim != 2:
            return "transcripts need targets (samples, length) and an output (samples, frames, tokens)"
        return Transcripts()
    if output.ndim < 2 or output.shape[:-1] != targets.shape or output.shape[-1] < 2:
        return _OTHER_SHAPE.format(list(targets.shape[1:]), list(output.shape[1:]))
    return Tokens(normalized=_are_probabilities(output))


_NO_SCORES = "the first output does not hold a score for each of several classes (samples, classes)"
_OTHER_SHAPE = "'targets' has samples of shape {}, the model's first output {}"


class Classes:
    """`accuracy` (the highest score is that of the label) and, from 20 classes on, `accuracy_top5`."""

    def __init__(self) -> None:
        self._top: _Hits = _Hits()
        self._top5: _Hits = _Hits()

    def add(self, original: Array, result: Array, batch: Batch) -> None:
        labels = batch.labels
        if labels is None:
            return
        self._top.add(original.argmax(axis=1) == labels, result.argmax(axis=1) == labels)
        if original.shape[1] >= _CLASSES_FOR_TOP_5:
            self._top5.add(_among_first(original, labels), _among_first(result, labels))

    def metrics(self, seed: int) -> list[Metric]:
        found = [self._top.metric("accuracy", seed)]
        return [*found, self._top5.metric("accuracy_top5", seed)] if self._top5 else found


class Regression:
    """`mse`, `mae` (means over all entries of all samples) and `r2`, 1 - mse / variance of the targets.

    An output with several entries has the variance of each around its own mean; they are added up.
    """

    def __init__(self) -> None:
        self._squared: list[tuple[Array, Array]] = []
        self._absolute: list[tuple[Array, Array]] = []
        self._count = 0
        self._mean: Array = np.zeros(())
        self._spread: Array = np.zeros(())

    def add(self, original: Array, result: Array, batch: Batch) -> None:
        if batch.targets is None:
            return
        count = len(batch)
        targets = batch.targets.reshape(count, -1).astype(np.float64)
        errors = [side.reshape(count, -1).astype(np.float64) - targets for side in (original, result)]
        self._squared.append(_both(np.square(error).mean(axis=1) for error in errors))
        self._absolute.append(_both(np.abs(error).mean(axis=1) for error in errors))
        # Chan, Golub and LeVeque 1983: means and squared deviations of parts join without loss.
        mean, total = targets.mean(axis=0), self._count + count
        shift = mean - self._mean
        self._spread = self._spread + np.square(targets - mean).sum(axis=0) + shift**2 * (self._count * count / total)
        self._mean = self._mean + shift * (count / total)
        self._count = total

    def metrics(self, seed: int) -> list[Metric]:
        squared, absolute = _joined(self._squared), _joined(self._absolute)
        mse = _error("mse", "squared output units", squared, seed)
        found = [mse, _error("mae", "output units", absolute, seed)]
        variance = float(self._spread.mean()) / self._count
        if variance > 0 and mse.original is not None and mse.interval is not None:
            low, high = mse.interval
            # The variance is that of these targets; only the errors are resampled.
            difference = (mse.original - mse.result) / variance
            interval = -high / variance, -low / variance
            found.append(
                Metric(
                    name="r2",
                    unit="fraction",
                    direction="higher_is_better",
                    original=1 - mse.original / variance,
                    result=1 - mse.result / variance,
                    interval=interval,
                    interval_of="difference",
                    samples=self._count,
                    verdict=statistics.accuracy_verdict(difference, interval),
                )
            )
        return found


class Tokens:
    """`perplexity` and `token_accuracy` of a model that says which token stands at each position.

    Perplexity is exp of the mean negative log likelihood over all positions whose target is not negative.

    Args:
        normalized: The output holds probabilities rather than logits (log-probabilities are logits too).
    """

    def __init__(self, *, normalized: bool) -> None:
        self._normalized = normalized
        self._likelihoods: list[tuple[Array, Array]] = []
        self._right: list[tuple[Array, Array]] = []
        self._counts: list[Array] = []

    def add(self, original: Array, result: Array, batch: Batch) -> None:
        if batch.targets is None:
            return
        targets = batch.targets.reshape(len(batch), -1)
        known = targets >= 0
        sides = [side.reshape(*targets.shape, -1) for side in (original, result)]
        self._counts.append(known.sum(axis=1))
        self._likelihoods.append(_both(self._negative_log(side, targets, known) for side in sides))
        self._right.append(_both(((side.argmax(axis=2) == targets) & known).sum(axis=1) for side in sides))

    def _negative_log(self, side: Array, targets: Array, known: Array) -> Array:
        logits = side.astype(np.float64)
        chosen = np.take_along_axis(logits, np.where(known, targets, 0)[:, :, None], axis=2)[:, :, 0]
        if self._normalized:
            losses = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
        else:
            largest = logits.max(axis=2)
            losses = np.log(np.exp(logits - largest[:, :, None]).sum(axis=2)) + largest - chosen
        total: Array = np.where(known, losses, 0.0).sum(axis=1)
        return total

    def metrics(self, seed: int) -> list[Metric]:
        counts = np.concatenate(self._counts)
        if not counts.sum():
            return []
        before, after = _joined(self._likelihoods)
        difference, (low, high) = statistics.ratio_of_sums_difference(before, after, counts, seed)
        original, result = (_exp(float(side.sum() / counts.sum())) for side in (before, after))
        interval = _exp(-high), _exp(-low)
        perplexity = Metric(
            name="perplexity",
            unit="tokens",
            direction="lower_is_better",
            original=original,
            result=result,
            ratio=_exp(-difference),
            interval=interval,
            interval_of="ratio",
            samples=len(counts),
            verdict=statistics.ratio_verdict(_exp(-difference), interval, ("worse", "better")),
        )
        return [perplexity, _share("token_accuracy", _joined(self._right), counts, seed, "higher_is_better")]


class Transcripts:
    """`token_error_rate` of a model trained with CTC (Graves 2006): token 0 is the blank, negative targets are padding.

    Best path decoding: the likeliest token of each frame, repetitions merged, blanks dropped. The rate is the number of
    insertions, deletions and substitutions to the target over the number of its tokens; with characters as tokens it is
    the character error rate.
    """

    def __init__(self) -> None:
        self._errors: list[tuple[Array, Array]] = []
        self._counts: list[Array] = []

    def add(self, original: Array, result: Array, batch: Batch) -> None:
        if batch.targets is None:
            return
        wanted = [row[row >= 0] for row in batch.targets]
        self._counts.append(np.array([len(row) for row in wanted]))
        self._errors.append(
            _both(
                np.array(
                    [edit_distance(best_path(frames), target) for frames, target in zip(side, wanted, strict=True)]
                )
                for side in (original, result)
            )
        )

    def metrics(self, seed: int) -> list[Metric]:
        counts = np.concatenate(self._counts)
        if not counts.sum():
            return []
        return [_share("token_error_rate", _joined(self._errors), counts, seed, "lower_is_better")]


def best_path(scores: Array) -> Array:
    """Tokens (length,) from scores (frames, tokens), as CTC reads them with blank 0."""
    path = scores.argmax(axis=1)
    changes = np.concatenate([[True], path[1:] != path[:-1]])
    tokens: Array = path[changes & (path != 0)]
    return tokens


def edit_distance(found: Array, wanted: Array) -> int:
    """The fewest insertions, deletions and substitutions between two sequences (Levenshtein 1966).

    >>> edit_distance(np.array([1, 2, 3]), np.array([2, 3, 4, 5]))
    3
    """
    position = np.arange(len(wanted) + 1)
    row = position
    for token in found:
        kept = np.concatenate([[row[0] + 1], np.minimum(row[1:] + 1, row[:-1] + (wanted != token))])
        # An insertion costs 1 more than its left neighbour, which may itself be one: a running minimum.
        row = np.minimum.accumulate(kept - position) + position
    return int(row[-1])


class _Hits:
    """Which samples each of the two got right."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Array, Array]] = []

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def add(self, original: Array, result: Array) -> None:
        self._pairs.append((original, result))

    def metric(self, name: str, seed: int) -> Metric:
        return hits(name, *_joined(self._pairs), seed)


def hits(name: str, before: Array, after: Array, seed: int) -> Metric:
    """A share of samples that are right, with the interval of its change and McNemar's test.

    Args:
        name: Of the metric.
        before: (n,) which samples the original got right.
        after: (n,) which the result did.
        seed: Of the resampling.
    """
    difference, interval = statistics.mean_difference(before, after, seed)
    original, result = float(before.mean()), float(after.mean())
    same = bool((before == after).all())
    return Metric(
        name=name,
        unit="fraction",
        direction="higher_is_better",
        original=original,
        result=result,
        ratio=result / original if original else None,
        interval=interval,
        interval_of="difference",
        p_value=statistics.mcnemar(before, after),
        samples=len(before),
        # No interval can be estimated from samples that never differ.
        verdict=f"right and wrong on the same of {len(before)} samples"
        if same
        else statistics.accuracy_verdict(difference, interval),
    )


def is_scores(value: object, count: int) -> bool:
    """Whether an output holds one score for each of at least two classes, for each sample."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind == "f"
        and value.ndim == 2
        and len(value) == count
        and value.shape[1] > 1
    )


def _among_first(scores: Array, labels: Array) -> Array:
    """Whether the label's score is one of the five highest; of equal scores the lower class comes first."""
    own = np.take_along_axis(scores, np.minimum(labels, scores.shape[1] - 1)[:, None], axis=1)
    earlier = (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    rank = ((scores > own) | earlier).sum(axis=1)
    found: Array = (rank < 5) & (labels < scores.shape[1])
    return found


def _are_probabilities(output: Array) -> bool:
    return bool((output >= 0).all() and (np.abs(output.sum(axis=-1) - 1) < _TOLERANCE).all())


def _exp(value: float) -> float:
    return math.exp(min(value, _LARGEST_EXPONENT))


def _both(sides: Any) -> tuple[Array, Array]:  # noqa: ANN401 - a generator of two arrays
    original, result = sides
    return original, result


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def _error(name: str, unit: str, sides: tuple[Array, Array], seed: int) -> Metric:
    difference, interval = statistics.mean_difference(*sides, seed)
    original, result = (float(side.mean()) for side in sides)
    return Metric(
        name=name,
        unit=unit,
        direction="lower_is_better",
        original=original,
        result=result,
        ratio=original / result if result else None,
        interval=interval,
        interval_of="difference",
        samples=len(sides[0]),
        verdict=statistics.error_verdict(original, difference, interval),
    )


def _share(name: str, sides: tuple[Array, Array], counts: Array, seed: int, direction: Any) -> Metric:  # noqa: ANN401
    """Hits or errors in samples that hold different numbers of what can be hit."""
    difference, interval = statistics.ratio_of_sums_difference(*sides, counts, seed)
    original, result = (float(side.sum() / counts.sum()) for side in sides)
    better = result / original if original else None
    worse = original / result if result else None
    lower = direction == "lower_is_better"
    return Metric(
        name=name,
        unit="fraction",
        direction=direction,
        original=original,
        result=result,
        ratio=worse if lower else better,
        interval=interval,
        interval_of="difference",
        samples=len(counts),
        verdict=statistics.error_verdict(original, difference, interval)
        if lower
        else statistics.accuracy_verdict(difference, interval),
    )
