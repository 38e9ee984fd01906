"""All that is measured of one result."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from compression import providers
from compression.benchmarking.apart import compare_apart
from compression.benchmarking.cores import Cores
from compression.benchmarking.energy import energy_metrics
from compression.benchmarking.inputs import Inputs
from compression.benchmarking.latency import affordable_loads, latency_metrics, time_loads
from compression.benchmarking.memory import Probes, memory_metrics
from compression.benchmarking.profiling import profile
from compression.benchmarking.quality import compare
from compression.benchmarking.sides import Sides
from compression.benchmarking.size import model_bytes, size_metrics
from compression.benchmarking.spec import BenchmarkSpec
from compression.benchmarking.statistics import is_slower
from compression.benchmarking.subject import Subject
from compression.benchmarking.sweep import sweep
from compression.context import Context
from compression.data import Dataset
from compression.errors import DataRejected, StepFailed
from compression.fresh_process import Array
from compression.result import Conditions, Measured, Metric
from compression.signature import ModelSummary


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
    *,
    beside: Sequence[Path] = (),
) -> Measurement:
    """Measure a result against the original on this machine.

    Args:
        original: The original.
        compressed: The result.
        spec: What to measure, how long and how.
        context: For its `workdir`, threads (where `spec` names none), progress from 0 to 1 and cancellation.
        original_summary: Of the original.
        compressed_summary: Of the result.
        evaluation: Samples that fit the original; without them inputs are made up, and accuracy is not measured.
        seed: Of made-up inputs, the order of calls and the resampling.
        beside: Files in which the original keeps weights, if it does.

    Raises:
        StepFailed: `benchmark_failed` when a model does not load or run, `provider_missing`.
        Cancelled: The caller asked to stop.
    """
    provider = providers.choose(spec.provider, context.device)
    inputs = Inputs(original_summary, compressed_summary, evaluation, spec, seed)
    subject = Subject(original, compressed, spec, context, inputs, seed, provider)
    found = _Findings()
    found.add(*size_metrics(original, compressed, original_summary, compressed_summary, context, beside))
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=context.workdir) as folder:
        try:
            needed = _needed(subject, beside) if beside else 0
            if needed > context.memory:
                _run_apart(subject, found, needed)
                return Measurement(tuple(found.metrics), tuple(found.notes), Measured())
            _run_both(subject, found, Path(folder), made_up=evaluation is None)
        except _OnlySizes as only:
            return Measurement(tuple(found.metrics), (*found.notes, f"Only sizes were measured: {only}"), Measured())
    if evaluation is None:
        found.notes.append("Latency, memory and agreement of outputs were measured on made-up inputs.")
    if found.why_not_judged:
        reason = "the job names no evaluation data" if evaluation is None else found.why_not_judged
        found.notes.append(f"Accuracy was not measured: {reason}.")
    found.notes += _said_of_provider(subject)
    return Measurement(tuple(found.metrics), tuple(found.notes), found.measured)


class _OnlySizes(Exception):
    """The models cannot be run here; the message says why."""


def _needed(subject: Subject, beside: Sequence[Path]) -> int:
    """Bytes that both models take in memory: mapped, and packed anew as runtimes do."""
    return 2 * (model_bytes(subject.original, beside) + model_bytes(subject.compressed))


@dataclasses.dataclass
class _Findings:
    metrics: list[Metric] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    measured: Measured = dataclasses.field(default_factory=Measured)
    why_not_judged: str = ""

    def add(self, metrics: Sequence[Metric], notes: Sequence[str]) -> None:
        self.metrics += metrics
        self.notes += notes

    def tell(self, **parts: object) -> None:
        self.measured = self.measured.model_copy(update=parts)


def _run_both(subject: Subject, found: _Findings, folder: Path, *, made_up: bool) -> None:
    """Everything for which the models must run, in the order in which it is best measured."""
    spec, context = subject.spec, subject.context
    with Probes(folder) as probes, subject.cores() as cores:
        try:
            sample = subject.inputs.timed()
        except DataRejected as error:
            raise _OnlySizes(error.message) from None
        context.progress("benchmarking", 0.2, "comparing outputs")
        sides = subject.sides(cores)
        try:
            sides.try_out(sample, only=0)
        except StepFailed as error:
            if made_up:
                raise _OnlySizes(f"on made-up inputs, {error.message}") from None
            raise
        sides.try_out(sample, only=1)
        comparison = compare(
            *sides.models, subject.inputs.compared(), context, task=spec.task, pad_to=subject.inputs.fixed
        )
        judged = comparison.judged(subject.seed)
        context.progress("benchmarking", 0.4, "measuring memory")
        footprints = probes.measure(
            subject.original,
            subject.compressed,
            sample,
            subject.threads,
            runs=spec.memory_runs,
            provider=subject.provider,
        )
        context.check_cancelled()
        context.progress("benchmarking", 0.5, "measuring latency")
        latency, conditions = _time(subject, sides, cores, sample)
        found.add(latency, _slower(latency[0]))
        found.add(*memory_metrics(*footprints))
        found.tell(conditions=conditions)
        if spec.energy_seconds:
            context.progress("benchmarking", 0.7, "measuring energy")
            check = context.check_cancelled
            calls = sides.calls_again(sample)
            found.add(*energy_metrics(*calls, spec.energy_seconds, subject.seed, between_blocks=check))
            cores.release()
        if cores.why_not and spec.pin_threads:
            found.notes.append(f"Threads were not pinned to cores while timing: {cores.why_not}.")
    found.add([*judged, *comparison.agreement()], [*_worse(judged), *comparison.notes()])
    if isinstance(comparison.score, str):
        found.why_not_judged = comparison.score
    del sides, comparison
    _tables(subject, found, sample, folder)


def _run_apart(subject: Subject, found: _Findings, needed: int) -> None:
    """What can be known where the models do not fit into memory together."""
    too_large = f"both models at once would take about {needed:,} bytes of memory, and this run has "
    too_large += f"{subject.context.memory:,}"
    subject.context.progress("benchmarking", 0.4, "comparing outputs")
    try:
        comparison = compare_apart(subject)
    except (DataRejected, StepFailed) as error:
        raise _OnlySizes(
            f"{too_large}; and outputs could not be compared one after the other: {error.message}"
        ) from None
    found.add(comparison.agreement(), comparison.notes())
    found.notes.append(
        f"Outputs were compared on {comparison.samples} samples, one model after the other: {too_large}. "
        "Latency, memory and accuracy were not measured."
    )


def _tables(subject: Subject, found: _Findings, sample: dict[str, Array], folder: Path) -> None:
    """What a job gets that asks for it."""
    spec, context = subject.spec, subject.context
    if spec.profile_runs:
        context.progress("benchmarking", 0.8, "profiling")
        ours, theirs = (profile(subject, path, sample, folder) for path in (subject.original, subject.compressed))
        found.tell(original_profile=ours, result_profile=theirs)
    if spec.batch_sizes or spec.thread_counts:
        points, notes = sweep(dataclasses.replace(subject, context=context.within(0.8, 1.0)))
        found.tell(sweep=tuple(points))
        found.notes += notes


def _time(subject: Subject, sides: Sides, cores: Cores, sample: dict[str, Array]) -> tuple[list[Metric], Conditions]:
    spec, check = subject.spec, subject.context.check_cancelled
    loads = affordable_loads(spec, sides.seconds)
    timings = time_loads(sides.calls(sample), loads, spec, subject.seed, between_rounds=check)
    cores.release()
    speed_up = timings.speed_up(subject.seed)
    return latency_metrics(timings, speed_up, subject.inputs.batch_size, spec), Conditions(
        provider=subject.provider,
        threads=cores.threads,
        pinned=not cores.why_not,
        batch_size=subject.inputs.batch_size,
        loads=len(timings.loads),
        pairs=len(timings.original),
        warm_up_pairs=timings.warm_up,
        block_length=speed_up.block_length,
        between_loads=speed_up.between_loads,
    )


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


def _said_of_provider(subject: Subject) -> list[str]:
    if subject.provider != "cpu":
        return ["Memory is the host's; what the GPU holds was not measured."]
    if subject.context.device == "cuda" and subject.spec.provider == "auto":
        return ["The models were measured on the CPU: ONNX Runtime cannot use CUDA here."]
    return []
