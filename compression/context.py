"""What a run needs from whoever starts it: a folder, a seed, and someone to report to.

All hooks are no-ops by default, so the library runs the same from a notebook, its own CLI or a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from compression.errors import Cancelled
from compression.graph.limits import LARGEST_MESSAGE
from compression.memory import memory_limit

PHASES = frozenset(
    {
        "preparing",
        "loading",
        "distilling",
        "pruning",
        "factorizing",
        "training",
        "clustering",
        "quantizing",
        "encoding",
        "verifying",
        "benchmarking",
        "reporting",
        "publishing",
    }
)
"""What a run can be at; the first and the last are its worker's."""


class Progress(Protocol):
    def __call__(self, phase: str, fraction: float, message: str = "") -> None:
        """Say where the run stands.

        Args:
            phase: What is being done now, one of `PHASES`.
            fraction: Share of the whole run that is done, 0 to 1, never decreasing.
            message: A short sentence for a person; may be empty.
        """


class Spans(Protocol):
    def __call__(self, name: str, /, **attributes: str | bool | float) -> AbstractContextManager[None]:
        """A context in which a named part of the run is done, for who keeps a trace of it."""


class StepCache(Protocol):
    """Finished steps by their key (see `compression.cache`)."""

    def get(self, key: str) -> Path | None:
        """The folder that an earlier run filled for this step, or None."""

    def put(self, key: str, folder: Path) -> None:
        """Keep what a finished step left in `folder`. The folder must not change afterwards."""


def _ignore_progress(phase: str, fraction: float, message: str = "") -> None:
    """Nobody listens."""


def _no_span(_name: str, /, **_attributes: str | bool | float) -> AbstractContextManager[None]:
    return nullcontext()


def _never_cancelled() -> bool:
    return False


@dataclass(frozen=True)
class Context:
    """The surroundings of one run.

    Attributes:
        workdir: An existing, writable folder that belongs to this run alone; results land in `workdir/out`.
        device: `cpu` or `cuda`.
        threads: Intra-operator threads for calibration and measuring; 0 lets the runtime choose.
        progress: Called at every change of phase and now and then within one.
        is_cancelled: Asked between units of work; once it says True the run raises `Cancelled`.
        step_cache: Where finished steps are found and kept, or None.
        held_bytes: A model with external data of more bytes is not read into memory as a whole, where the steps can
            do without.
        memory_bytes: Memory that the run may count on; 0 for what the machine or the process's limits allow.
        span: Entered around each step and each other part of the run.
    """

    workdir: Path
    device: str = "cpu"
    threads: int = 0
    progress: Progress = field(default=_ignore_progress)
    is_cancelled: Callable[[], bool] = field(default=_never_cancelled)
    step_cache: StepCache | None = None
    held_bytes: int = LARGEST_MESSAGE
    memory_bytes: int = 0
    span: Spans = field(default=_no_span)

    @property
    def memory(self) -> int:
        """Memory that the run may count on, in bytes."""
        return self.memory_bytes or memory_limit()

    def within(self, start: float, end: float) -> Context:
        """The same surroundings for a part of the run, whose progress from 0 to 1 is a share of the whole."""

        def progress(phase: str, fraction: float, message: str = "") -> None:
            self.progress(phase, start + (end - start) * min(max(fraction, 0.0), 1.0), message)

        return replace(self, progress=progress)

    def check_cancelled(self) -> None:
        """Raise `Cancelled` when the caller asked to stop."""
        if self.is_cancelled():
            raise Cancelled
