"""One run: load, check, apply the steps, verify, measure, report."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx

from compression import gpu, providers, publishing
from compression._spec_base import DataRole
from compression.benchmarking.machine import machine_facts
from compression.benchmarking.measure import measure
from compression.benchmarking.size import coded_metric
from compression.cache import step_keys
from compression.coding.encode import encode
from compression.context import Context
from compression.data import Batch, DataSource, open_dataset, synthetic_batches
from compression.data.feed import ModelFeed
from compression.data.ranges import differing_ranges
from compression.dispatch import Material, apply
from compression.errors import CompressionError, DataRejected, ModelRejected
from compression.finished_steps import Done, keep, resume
from compression.fitting import fitted
from compression.graph.architectures.companion import read_companion
from compression.graph.architectures.formats import is_levity
from compression.graph.architectures.spec import COMPANION
from compression.graph.inspect import summarize
from compression.graph.load import LoadedModel, load
from compression.graph.skeleton import outside_bytes
from compression.memory import can_map
from compression.quantization.isa import cpu_facts
from compression.report.write import write_manifest, write_report
from compression.result import PipelineResult, StepResult
from compression.signature import ModelSummary
from compression.spec import Encode, PipelineSpec, missing_data
from compression.verification import Verifier, reference_outputs

ROLES = get_args(DataRole)
_PHASES = {
    "distill": "distilling",
    "prune": "pruning",
    "prune_channels": "pruning",
    "factorize": "factorizing",
    "finetune": "training",
    "cluster": "clustering",
    "quantize": "quantizing",
    "encode": "encoding",
}
_VERIFIED_SAMPLES = 8
# Where the phases end, as shares of the whole run.
_LOADED, _STEPPED, _VERIFIED, _MEASURED = 0.05, 0.6, 0.65, 0.95


def run(
    model: Path,
    spec: PipelineSpec,
    context: Context,
    data: Mapping[str, DataSource] | None = None,
    *,
    student: Path | None = None,
    model_sha256: str | None = None,
    data_sha256: Mapping[str, str] | None = None,
    student_sha256: str | None = None,
) -> PipelineResult:
    """Apply `spec` to a model; the files are in `context.workdir / "out"` afterwards.

    Args:
        model: An ONNX file; external data lies beside it.
        spec: The steps and how to measure.
        context: Folder, device, hooks.
        data: Datasets by role: `calibration`, `training`, `evaluation`. All are optional, save that static
            quantization needs the first and steps that train need the second.
        student: A second ONNX file, which a `distill` step with that student trains.
        model_sha256: Hash of the upload, where the caller knows it already.
        data_sha256: Hashes of the datasets by role, likewise.
        student_sha256: Hash of the student, likewise.

    Raises:
        ModelRejected, DataRejected, StepFailed: with a code and a sentence.
        CompressionError: `out_of_memory` or `disk_full`, which another machine may not see.
        Cancelled: when `context.is_cancelled` says so.
    """
    started = time.perf_counter()
    sources = dict(data or {})
    _check_roles(spec, sources)
    providers.choose(spec.benchmark.provider, context.device)  # better missed now than after the steps
    problem = spec.student_problem(given=student is not None)
    if problem is not None:
        raise ModelRejected(*problem)
    try:
        # The verifying process starts first: what it imports is imported while the steps work.
        with Verifier(context.workdir, threads=context.threads) as verifier:
            context.progress("loading", 0.0)
            with context.span("load"):
                loaded = load(model, held_bytes=context.held_bytes)
                original = summarize(loaded.model, loaded.file_bytes, loaded.external_data_bytes)
                feeds = {role: _feed(source, original, role) for role, source in sources.items()}
            context.check_cancelled()
            second = None if student is None else load(student)
            hashes = _Hashes(
                model_sha256 or _sha256(model, loaded),
                data_sha256 or {role: publishing.sha256_of(source.path) for role, source in sources.items()},
                None if student is None or second is None else student_sha256 or _sha256(student, second),
            )
            keys = step_keys(
                hashes.model,
                hashes.data,
                spec,
                cpu_facts(),
                machine=machine_facts(context.threads),
                student_sha256=hashes.student,
            )
            path = _in_one_file(model, loaded, context)
            beside = tuple(path.with_name(name) for name in loaded.external_files) if path == model else ()
            subject = _Subject(path, beside, original, spec, context, feeds, None if second is None else second.model)
            result_model, steps = _apply_all(loaded.model, subject, keys)
            with context.span("verify"):
                written = _write_and_verify(result_model, subject, verifier)
                coded = _code_and_verify(written, subject, verifier)
        gpu.release()
        with context.span("measure"):
            result = _measure(subject, result_model, written, coded, steps, started)
        with context.span("report"):
            return _report(subject, result, hashes, keys)
    except MemoryError:
        raise CompressionError("out_of_memory", "The run needs more memory than it may use.", retryable=True) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CompressionError("disk_full", "No space is left to write results.", retryable=True) from error
        raise


@dataclass(frozen=True)
class _Hashes:
    """SHA-256 of what came in."""

    model: str
    data: Mapping[str, str]
    student: str | None = None


@dataclass(frozen=True)
class _Subject:
    """What a run is about; `path` is the original, and `beside` are the files in which it keeps weights."""

    path: Path
    beside: tuple[Path, ...]
    summary: ModelSummary
    spec: PipelineSpec
    context: Context
    feeds: Mapping[str, ModelFeed]
    student: onnx.ModelProto | None = None

    def material(self, key: str) -> Material:
        return Material(self.feeds, lambda: onnx.load(self.path), self.spec.seed, key, self.student)


def _check_roles(spec: PipelineSpec, data: Mapping[str, DataSource]) -> None:
    unknown = sorted(set(data) - set(ROLES))
    if unknown:
        raise DataRejected("unknown_role", f"Datasets serve as {' or '.join(ROLES)}, not as '{unknown[0]}'.")
    for role, step in spec.data_needed.items():
        if role not in data:
            raise DataRejected(f"{role}_data_missing", missing_data(role, step))


def _sha256(path: Path, loaded: LoadedModel) -> str:
    return publishing.sha256_of(path, *(path.parent / name for name in loaded.external_files))


def _feed(source: DataSource, model: ModelSummary, role: str) -> ModelFeed:
    # Accuracy is that of all samples; calibration loses nothing by a rest that fills no batch.
    return ModelFeed(open_dataset(source), model, role, whole_batches=role != "evaluation")


def _in_one_file(model: Path, loaded: LoadedModel, context: Context) -> Path:
    """The original as it was uploaded, or decoded, or joined with its external data where that was read."""
    if (not loaded.external_files or outside_bytes(loaded.model)) and not is_levity(model):
        return model
    path = context.workdir / "original.onnx"
    publishing.write_any_size(path, loaded.model)
    return path


def _apply_all(
    model: onnx.ModelProto, subject: _Subject, keys: Sequence[str]
) -> tuple[onnx.ModelProto, tuple[StepResult, ...]]:
    """All steps in order, from the last one on that an earlier run has finished."""
    spec, context = subject.spec, subject.context.within(_LOADED, _STEPPED)
    done: list[Done] = []
    cache = context.step_cache
    if cache is not None:
        model, done = resume(model, cache, keys)
    cached = len(done)
    for index, step in enumerate(spec.steps[cached:], start=cached):
        context.check_cancelled()
        part = context.within(index / len(spec.steps), (index + 1) / len(spec.steps))
        part.progress(_PHASES[step.type], 0.0)
        begun = time.perf_counter()
        with context.span(f"step {step.type}", index=index):
            model, details = apply(step, fitted(step, index, model, part), part, subject.material(keys[index]))
        done.append(Done(type=step.type, seconds=time.perf_counter() - begun, details=details))
        if cache is not None:
            keep(cache, keys[index], context.workdir / "steps" / str(index), model, done)
    results = tuple(
        StepResult(index=index, type=one.type, seconds=one.seconds, cached=index < cached, details=one.details)
        for index, one in enumerate(done)
    )
    return model, results


def _write_and_verify(model: onnx.ModelProto, subject: _Subject, verifier: Verifier) -> Path:
    """The result as a file that a fresh process has loaded and run, where a process may map it."""
    context = subject.context
    out = context.workdir / "out"
    out.mkdir(exist_ok=True)
    path = out / publishing.MODEL
    publishing.write_any_size(path, model, own=context.workdir)
    context.progress("verifying", _STEPPED)
    context.check_cancelled()
    batch = _some_samples(subject)
    outside = publishing.data_file(path).exists()
    if outside and not can_map(publishing.data_file(path).stat().st_size):
        return path  # the result says so
    if outside:
        # This process does not hold what exceeds a file: another fresh one gives the outputs.
        with Verifier(context.workdir, threads=context.threads) as other:
            expected = other.outputs(path, batch.inputs)
    else:
        expected = reference_outputs(path, batch.inputs, context.threads)
    verifier.verify(path, batch.inputs, expected, mapped=outside)
    return path


def _code_and_verify(written: Path, subject: _Subject, verifier: Verifier) -> Path | None:
    """The coded result, where the last step asks for it, as a file that a fresh process has decoded."""
    step, context = subject.spec.steps[-1], subject.context
    if not isinstance(step, Encode):
        return None
    path, made = written.with_name(publishing.CODED), context.workdir / publishing.CODED
    if made.exists():
        made.replace(path)
    else:  # the step was found in the cache, which keeps models only
        path.write_bytes(encode(written.read_bytes(), coder=step.coder, between=context.check_cancelled).data)
    verifier.verify_coded(path, written)
    return path


def _some_samples(subject: _Subject) -> Batch:
    """A few samples to verify with: real ones where there are any."""
    feed = subject.feeds.get("evaluation") or subject.feeds.get("calibration")
    if feed is None:
        return next(synthetic_batches(subject.summary, _VERIFIED_SAMPLES, subject.spec.seed))
    return next(feed.batches(_VERIFIED_SAMPLES, _VERIFIED_SAMPLES))


def _measure(  # noqa: PLR0917 - private, and always all of them
    subject: _Subject,
    result_model: onnx.ModelProto,
    written: Path,
    coded: Path | None,
    steps: tuple[StepResult, ...],
    started: float,
) -> PipelineResult:
    """What the result weighs and does beside the original, with the files that hold it."""
    spec, context = subject.spec, subject.context
    data = publishing.data_file(written)
    outside = data.stat().st_size if data.exists() else 0
    compressed = summarize(result_model, written.stat().st_size + outside, outside)
    within = context.within(_VERIFIED, _MEASURED)
    within.progress("benchmarking", 0.0)
    context.check_cancelled()
    evaluation = subject.feeds.get("evaluation")
    measured = measure(
        subject.path,
        written,
        spec.benchmark,
        within,
        subject.summary,
        compressed,
        evaluation,
        spec.seed,
        beside=subject.beside,
    )
    artifacts = [publishing.describe(path) for path in (written, data) if path.exists()]
    metrics = list(measured.metrics)
    notes = [*measured.notes, *differing_ranges(subject.feeds), *_remarks(steps)]
    if outside and not can_map(outside):
        notes.append(
            f"The result was not loaded and run before it was handed out: its {outside:,} bytes are more than a "
            "process may map here."
        )
    step = spec.steps[-1]
    if coded is not None and isinstance(step, Encode):
        artifacts.append(publishing.describe(coded))
        metric, note = coded_metric(subject.path, coded, step.coder, context, beside=subject.beside)
        metrics.insert(2, metric)  # after the other sizes of files
        notes.append(note)
    weights = written.with_name(publishing.WEIGHTS)
    companion = read_companion(subject.path.with_name(COMPANION))
    saved = publishing.write_weights(
        weights, result_model, companion, held_bytes=min(context.held_bytes, context.memory // 4)
    )
    if saved.tensors:
        artifacts.append(publishing.describe(weights))
    notes += saved.notes
    return PipelineResult(
        model=subject.summary,
        compressed=compressed,
        data={role: feed.summary for role, feed in subject.feeds.items()},
        steps=steps,
        metrics=tuple(metrics),
        measured=measured.measured,
        notes=tuple(notes),
        artifacts=tuple(artifacts),
        seconds=time.perf_counter() - started,
    )


def _report(subject: _Subject, result: PipelineResult, hashes: _Hashes, keys: Sequence[str]) -> PipelineResult:
    """Write what people and machines read of the result; it comes back with these files among its artifacts."""
    context, out = subject.context, subject.context.workdir / "out"
    context.progress("reporting", _MEASURED)
    context.check_cancelled()
    (out / publishing.REPORT_JSON).write_text(result.model_dump_json(indent=2), encoding="utf-8")
    write_report(out, result, subject.spec)
    result = _with_files(result, publishing.REPORT_JSON, publishing.REPORT_HTML, out=out)
    write_manifest(
        out,
        result,
        subject.spec,
        context,
        model_sha256=hashes.model,
        data_sha256=hashes.data,
        step_keys=keys,
    )
    context.progress("reporting", 1.0)
    return _with_files(result, publishing.MANIFEST, out=out)


def _with_files(result: PipelineResult, *names: str, out: Path) -> PipelineResult:
    added = (publishing.describe(out / name) for name in names)
    return result.model_copy(update={"artifacts": (*result.artifacts, *added)})


def _remarks(steps: Sequence[StepResult]) -> list[str]:
    """What steps have to say, and a sentence for each that left weights as they were."""
    notes: list[str] = []
    for step in steps:
        said = step.details.get("notes")
        notes += [f"steps[{step.index}] ({step.type}): {note}" for note in said] if isinstance(said, list) else []
        weights = step.details.get("weights")
        reasons = [one for one in weights if "skipped" in one] if isinstance(weights, list) else []
        if reasons:
            count = f"{len(reasons)} weights as they were, the first" if len(reasons) > 1 else "a weight as it was,"
            first = f"'{reasons[0]['name']}': {reasons[0]['skipped']}"
            notes.append(f"steps[{step.index}] ({step.type}) left {count} {first}.")
    return notes
