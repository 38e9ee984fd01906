"""Latency and throughput over batch sizes and numbers of threads."""

from __future__ import annotations

import numpy as np

from compression.benchmarking import statistics
from compression.benchmarking.latency import affordable_loads, time_loads
from compression.benchmarking.subject import Subject
from compression.errors import DataRejected, StepFailed
from compression.result import SweepPoint

# Enough for an interval; a large batch takes long.
_LEAST_ROUNDS = 10


def sweep(subject: Subject) -> tuple[list[SweepPoint], list[str]]:
    """Both models at every combination that the spec names, and notes on what could not be measured.

    Args:
        subject: Its spec names `batch_sizes`, `thread_counts` or both.

    Raises:
        Cancelled: The caller asked to stop.
    """
    spec, inputs, context = subject.spec, subject.inputs, subject.context
    sizes = spec.batch_sizes or (inputs.batch_size,)
    notes = []
    if inputs.fixed is not None and sizes != (inputs.fixed,):
        notes.append(f"Batch sizes were not varied: the model takes {inputs.fixed} samples at a time.")
        if not spec.thread_counts:
            return [], notes
        sizes = (inputs.fixed,)
    combinations = [(size, threads) for size in sizes for threads in spec.thread_counts or (subject.threads,)]
    points = []
    for done, (size, threads) in enumerate(combinations):
        context.check_cancelled()
        words = f"batch size {size} and {threads or 'default'} threads"
        context.progress("benchmarking", done / len(combinations), f"measuring latency at {words}")
        try:
            points.append(_point(subject, size, threads))
        except (StepFailed, DataRejected) as error:
            notes.append(f"Latency was not measured at {words}: {error.message}")
    return points, notes


def _point(subject: Subject, size: int, threads: int) -> SweepPoint:
    least = min(subject.spec.min_rounds, _LEAST_ROUNDS)
    spec = subject.spec.model_copy(update={"max_seconds": subject.spec.sweep_seconds, "min_rounds": least})
    sample = subject.inputs.timed(size)
    with subject.cores(threads) as cores:
        sides = subject.sides(cores)
        sides.try_out(sample)
        timings = time_loads(
            sides.calls(sample),
            affordable_loads(spec, sides.seconds),
            spec,
            subject.seed,
            between_rounds=subject.context.check_cancelled,
        )
    found = timings.speed_up(subject.seed)
    return SweepPoint(
        batch_size=size,
        threads=cores.threads,
        pairs=len(timings.original),
        original_seconds=float(np.median(timings.original)),
        result_seconds=float(np.median(timings.result)),
        original_throughput=size / float(timings.original.mean()),
        result_throughput=size / float(timings.result.mean()),
        ratio=found.ratio,
        interval=found.interval,
        verdict=statistics.verdict(found.ratio, found.interval),
    )
