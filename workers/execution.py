"""What the child does with its request. Importing this module has the costly imports done."""

from __future__ import annotations

import itertools
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

# Loaded ahead of the job, which would otherwise wait for them midway.
import numpy.ma
import numpy.random  # noqa: F401
import onnxruntime.quantization  # noqa: F401

from compression import gpu
from compression.coding.decode import decode_file
from compression.context import Context
from compression.data import DataSource, inspect_dataset
from compression.errors import CompressionError, StepFailed
from compression.graph.architectures.convert import convert
from compression.graph.architectures.formats import is_levity
from compression.graph.inspect import inspect_model
from compression.pipeline import run
from compression.publishing import describe
from workers.failures import gpu_out_of_memory, is_allocation_failure, out_of_memory
from workers.protocol import (
    CACHE_FOLDER,
    OUT_FOLDER,
    REQUEST_FILE,
    Answer,
    Compressed,
    DatasetInspected,
    Failed,
    ModelInspected,
    Progressed,
    Request,
    SpanBegun,
    SpanEnded,
    StepFinished,
    write_event,
)


def serve(line: int, address_space: int | None) -> None:
    """Answer the request that lies in the working directory on the descriptor `line`."""
    log = _Log()
    gpu_name = ""
    try:
        request = Request.model_validate_json(Path(REQUEST_FILE).read_bytes())
        gpu_name = request.gpu
        log.say(request.kind)
        answer: Answer = _execute(line, request, log)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is this job's answer
        answer = _failure(error, address_space, gpu_name)
        log.say(f"{answer.code}: {answer.message}")
    _write(line, write_event(answer))


class _Log:
    """What the job's owner is shown of an attempt that fails: how far it came, beside what libraries print."""

    def __init__(self) -> None:
        self._begun = self._said = time.monotonic()
        self._phase = ""

    def progress(self, phase: str, fraction: float, message: str) -> None:
        """Every change of phase, else a line a second."""
        if phase != self._phase or time.monotonic() - self._said >= 1:
            self._phase = phase
            self.say(f"{phase} {fraction:.0%} {message}".rstrip())

    def say(self, text: str) -> None:
        self._said = time.monotonic()
        # A library may have closed it or filled the disk behind it: no reason to fail the job.
        with suppress(OSError, ValueError):
            print(f"[{self._said - self._begun:8.2f} s] {text}", file=sys.stderr, flush=True)  # noqa: T201


def _failure(error: Exception, address_space: int | None, gpu_name: str) -> Failed:
    # A step that says it has also said what it needed, and what would do.
    explained = isinstance(error, StepFailed) and error.code in ("out_of_memory", gpu.OUT_OF_MEMORY)
    if gpu.is_out_of_memory(error, on_gpu=bool(gpu_name)) and not explained:
        return gpu_out_of_memory(gpu_name)
    lacking = is_allocation_failure(error) or (isinstance(error, CompressionError) and error.code == "out_of_memory")
    if lacking and not explained:
        return out_of_memory(address_space)
    if isinstance(error, CompressionError):
        return Failed(code=error.code, message=_plain(error.message), retryable=error.retryable)
    traceback.print_exception(error)
    return Failed(code="internal_error", message=_plain(f"{type(error).__name__}: {error}"), retryable=False)


def _plain(message: str) -> str:
    """A message that a database takes, whatever an upload had libraries say."""
    return message[:4000].encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _execute(line: int, request: Request, log: _Log) -> Answer:
    sources = {
        role: DataSource(Path(data.path), format=None, images=data.images) for role, data in request.data.items()
    }
    if request.kind == "inspect_dataset":
        (source,) = sources.values()
        return DatasetInspected(summary=inspect_dataset(source))
    if request.model is None:
        raise ValueError("the request names no model")
    if request.kind == "inspect_model":
        return _inspect_model(Path(request.model), request)
    if request.spec is None:
        raise ValueError("the request has no pipeline")

    def progress(phase: str, fraction: float, message: str = "") -> None:
        fraction = min(max(fraction, 0.0), 1.0)
        log.progress(phase, fraction, message)
        _write(line, write_event(Progressed(phase=phase[:32], fraction=fraction, message=message[:1000])))

    workdir = Path.cwd()
    context = Context(
        workdir=workdir,
        device=request.device,
        threads=request.threads,
        progress=progress,
        step_cache=_ReportedSteps(line, workdir),
        held_bytes=request.held_bytes,
    )
    if request.traced:
        context = replace(context, span=_ReportedSpans(line))
    data_sha256 = {role: data.sha256 for role, data in request.data.items()}
    result = run(
        Path(request.model),
        request.spec,
        context,
        sources,
        student=None if request.student is None else Path(request.student),
        model_sha256=request.model_sha256,
        data_sha256=data_sha256,
        student_sha256=request.student_sha256,
    )
    return Compressed(result=result)


def _inspect_model(model: Path, request: Request) -> ModelInspected:
    out = Path.cwd() / OUT_FOLDER
    if request.source is None and is_levity(model):
        graph = decode_file(model, out)
        return ModelInspected(summary=inspect_model(graph), files=(describe(graph),))
    if request.source is None:
        return ModelInspected(summary=inspect_model(model, held_bytes=request.held_bytes))
    converted = convert(model, request.source, out, threads=request.threads)
    return ModelInspected(summary=converted.summary, files=tuple(describe(file) for file in converted.files))


class _ReportedSpans:
    """Tells the worker what begins and ends. One thread uses it."""

    def __init__(self, line: int) -> None:
        self._line = line
        self._numbers = itertools.count()
        self._open: list[int] = []

    @contextmanager
    def __call__(self, name: str, /, **attributes: str | bool | float) -> Iterator[None]:
        number, parent = next(self._numbers), self._open[-1] if self._open else None
        begun = SpanBegun(id=number, parent=parent, name=name, at=time.time(), attributes=attributes)
        _write(self._line, write_event(begun))
        self._open.append(number)
        problem = None
        try:
            yield
        except Exception as error:
            problem = error.code if isinstance(error, CompressionError) else type(error).__name__
            raise
        finally:
            self._open.pop()
            _write(self._line, write_event(SpanEnded(id=number, at=time.time(), error=problem)))


class _ReportedSteps:
    """Finds the steps that the worker laid out, and tells the worker of new ones."""

    def __init__(self, line: int, workdir: Path) -> None:
        self._line = line
        self._workdir = workdir

    def get(self, key: str) -> Path | None:
        folder = self._workdir / CACHE_FOLDER / key
        return folder if folder.is_dir() else None

    def put(self, key: str, folder: Path) -> None:
        relative = folder.resolve().relative_to(self._workdir.resolve())
        _write(self._line, write_event(StepFinished(key=key, folder=str(relative))))


def _write(line: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(line, rest) :]
