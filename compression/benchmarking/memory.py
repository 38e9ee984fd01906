"""Memory and load time of two models, each in a fresh process: in a used one, memory of earlier work is reused."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from compression.errors import StepFailed
from compression.fresh_process import Array, FreshProcess, ProcessDied, save_arrays
from compression.providers import Provider
from compression.result import Metric

_READY_SECONDS = 60.0
_SECONDS = 600.0


class Footprint(NamedTuple):
    """What loading a model and running it a few times takes.

    Attributes:
        load_seconds: From the file to a model that is ready to run.
        peak_bytes: The most memory held in RAM, beyond what the process held before; None where the system keeps no
            such number.
        steady_bytes: The memory held after the last run, likewise.
    """

    load_seconds: float
    peak_bytes: int | None
    steady_bytes: int | None


class Probes:
    """Two processes, started at once so that their imports overlap with other work, and idle until asked.

    Args:
        folder: An existing folder that belongs to this measurement.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with ExitStack() as stack:
            self._processes = [
                stack.enter_context(FreshProcess("compression.benchmarking.probe", folder)) for _ in range(2)
            ]
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def measure(
        self,
        original: Path,
        compressed: Path,
        inputs: Mapping[str, Array],
        threads: int,
        *,
        runs: int = 5,
        provider: Provider = "cpu",
    ) -> tuple[Footprint, Footprint]:
        """The two footprints, taken one after the other.

        Args:
            original: Path of the original.
            compressed: Path of the result.
            inputs: What to run the models on, by input name.
            threads: Intra-operator threads; 0 lets the runtime choose.
            runs: Of each model.
            provider: What runs them.

        Raises:
            StepFailed: `benchmark_failed` when a process ends or finds a model that does not run.
        """
        request: dict[str, object] = {
            "threads": threads,
            "runs": runs,
            "provider": provider,
            "names": save_arrays(self._folder / "inputs.npz", inputs),
            "inputs": str((self._folder / "inputs.npz").resolve()),
        }
        first, second = (
            self._footprint(process, path, request)
            for process, path in zip(self._processes, (original, compressed), strict=True)
        )
        return first, second

    def _footprint(self, process: FreshProcess, path: Path, request: dict[str, object]) -> Footprint:
        try:
            process.ready(_READY_SECONDS)
            answer = process.ask({"model": str(path.resolve()), **request}, _SECONDS)
        except (ProcessDied, TimeoutError) as error:
            raise _failed(path, str(error)) from None
        finally:
            process.close()
        if "problem" in answer:
            raise _failed(path, answer["problem"])
        return Footprint(answer["load_seconds"], answer["peak_bytes"], answer["steady_bytes"])


def memory_metrics(original: Footprint, result: Footprint) -> tuple[list[Metric], list[str]]:
    """Peak and steady memory and load time, and notes on them."""
    metrics = []
    notes = []
    if original.peak_bytes is not None and result.peak_bytes is not None:
        metrics.append(_metric("peak_memory_bytes", "bytes", original.peak_bytes, result.peak_bytes))
    else:
        notes.append("Peak memory was not measured: this system does not keep it.")
    if original.steady_bytes is not None and result.steady_bytes is not None:
        metrics.append(_metric("steady_memory_bytes", "bytes", original.steady_bytes, result.steady_bytes))
    metrics.append(_metric("load_seconds", "seconds", original.load_seconds, result.load_seconds))
    return metrics, notes


def _metric(name: str, unit: str, before: float, after: float) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        direction="lower_is_better",
        original=before,
        result=after,
        ratio=before / after if after else None,
        samples=1,
    )


def _failed(path: Path, reason: str) -> StepFailed:
    return StepFailed("benchmark_failed", f"A fresh process could not load and run '{path.name}': {reason}")
