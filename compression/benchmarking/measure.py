"""All that is measured of one result."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compression.benchmarking.cores import Cores
from compression.benchmarking.latency import affordable_loads, latency_metrics, time_loads
from compression.benchmarking.memory import Probes, memory_metrics
from compression.benchmarking.quality import compare
from compression.benchmarking.sides import Sides
from compression.benchmarking.size import size_metrics
from compression.benchmarking.spec import BenchmarkSpec
from compression.benchmarking.statistics import is_slower
from compression.context import Context
from compression.data import Batch, Dataset, synthetic_batches
from compression.errors import DataRejected, StepFailed
from compression.fresh_process import Array
from compression.result import Conditions, Measured, Metric
from compression.signature import ModelSummary

_SYNTHETIC_SAMPLES = 32
_EVALUATION_BATCH_BYTES = 4 << 20
_MAX_EVALUATION_BATCH = 256


class Measurement(NamedTuple):
    """Numbers, and what a reader must know of them."""

    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    measured: Measured


def measure(  # noqa: PLR0917 - two of everything, and always all of them
    original: Path,
    compressed: Path,
    spec: BenchmarkSpec,
    context: Context,
    original_summary: ModelSummary,
    compressed_summary: ModelSummary,
    evaluation: Dataset | None,
    seed: int,
) -> Measurement:
    """Measure a result against the original on this machine.

    Args:
        original: The original, complete in one file.
        compressed: The result.
        spec: How long and how.
        context: For its `workdir`, threads (where `spec` names none), progress from 0 to 1 and cancellation.
        original_summary: Of the original.
        compressed_summary: Of the result.
        evaluation: Samples that fit the original; without them inputs are made up, and accuracy is not measured.
        seed: Of made-up inputs, the order of calls and the resampling.

    Raises:
        StepFailed: `benchmark_failed` when a model does not load or run.
        Cancelled: The caller asked to stop.
    """
    threads = spec.threads or context.threads
    metrics: list[Metric] = []
    notes: list[str] = []

    def add(found: list[Metric], said: list[str]) -> None:
        metrics.extend(found)
        notes.extend(said)

    def only_sizes(reason: str) -> Measurement:
        return Measurement(tuple(metrics), (*notes, f"Only sizes were measured: {reason}"), Measured())

    with (
        tempfile.TemporaryDirectory(prefix="benchmark-", dir=context.workdir) as folder,
        Probes(Path(folder)) as probes,
        Cores(threads, pin=spec.pin_threads, start=os.getpid()) as cores,
    ):
        add(*size_metrics(original, compressed, original_summary, compressed_summary, context))
        inputs = _Inputs(original_summary, compressed_summary, evaluation, spec, seed)
        try:
            sample = inputs.timed()
        except DataRejected as error:
            return only_sizes(error.message)
        context.progress("benchmarking", 0.2, "comparing outputs")
        sides = Sides(original, compressed, cores, seed)
        try:
            sides.try_out(sample, only=0)
        except StepFailed as error:
            if evaluation is not None:
                raise
            return only_sizes(f"on made-up inputs, {error.message}")
        sides.try_out(sample, only=1)
        comparison = compare(*sides.models, inputs.compared(), context, task=spec.task, pad_to=inputs.fixed)
        judged = comparison.judged(seed)
        context.progress("benchmarking", 0.4, "measuring memory")
        memory = memory_metrics(*probes.measure(original, compressed, sample, threads))
        context.check_cancelled()
        context.progress("benchmarking", 0.5, "measuring latency")
        latency, conditions = _time(sides, sample, spec, context, cores, inputs.batch_size, seed)
    add(latency, _slower(latency[0]))
    add(*memory)
    add([*judged, *comparison.agreement()], [*_worse(judged), *comparison.notes()])
    if evaluation is None:
        notes.append("Latency, memory and agreement of outputs were measured on made-up inputs.")
    if isinstance(comparison.score, str):
        reason = "the job names no evaluation data" if evaluation is None else comparison.score
        notes.append(f"Accuracy was not measured: {reason}.")
    if cores.why_not and spec.pin_threads:
        notes.append(f"Threads were not pinned to cores while timing: {cores.why_not}.")
    return Measurement(tuple(metrics), tuple(notes), Measured(conditions=conditions))


def _time(  # noqa: PLR0917 - private, called once
    sides: Sides,
    sample: dict[str, Array],
    spec: BenchmarkSpec,
    context: Context,
    cores: Cores,
    batch_size: int,
    seed: int,
) -> tuple[list[Metric], Conditions]:
    loads = affordable_loads(spec, sides.seconds)
    timings = time_loads(sides.calls(sample), loads, spec, seed, between_rounds=context.check_cancelled)
    cores.release()
    speed_up = timings.speed_up(seed)
    return latency_metrics(timings, speed_up, batch_size), Conditions(
        threads=cores.threads,
        pinned=not cores.why_not,
        batch_size=batch_size,
        loads=loads,
        pairs=len(timings.original),
        warm_up_pairs=timings.warm_up,
        block_length=speed_up.block_length,
        between_loads=speed_up.between_loads,
    )


class _Inputs:
    """Batches to time, and batches to compare outputs on."""

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

    def timed(self) -> dict[str, Array]:
        """One batch by input name, of exactly `batch_size` samples."""
        if self._evaluation is None:
            return next(synthetic_batches(self._original, self.batch_size, self._seed, self.batch_size)).inputs
        batch = next(self._evaluation.batches(self.batch_size, self.batch_size))
        rows = np.arange(self.batch_size) % len(batch)
        arrays = {name: values[rows] for name, values in batch.inputs.items()}
        if len(arrays) == 1 and len(self._original.inputs) == 1:
            arrays = {self._original.inputs[0].name: next(iter(arrays.values()))}
        return arrays

    def compared(self) -> Iterator[Batch]:
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


def fixed_batch(model: ModelSummary) -> int | None:
    """The batch size that a model insists on; None where its batch axis is open."""
    for spec in model.inputs:
        if spec.shape and isinstance(spec.shape[0], int):
            return spec.shape[0]
    return None


def _slower(median: Metric) -> list[str]:
    if median.interval is None or not is_slower(median.interval):
        return []
    return [f"The result is slower than the original on this machine: {median.verdict.removeprefix('slower, ')}."]


def _worse(judged: list[Metric]) -> list[str]:
    """A sentence for each metric that shows a loss; of accuracy first, which is what most ask for."""
    return [
        f"The result is less accurate than the original: {said}."
        if metric.name == "accuracy"
        else f"The result is worse than the original in {metric.name}: {said}."
        for metric in judged
        if (said := metric.verdict.removeprefix("worse, ")) != metric.verdict
    ]
