"""What is measured, and how: what all parts of a measurement share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from compression.benchmarking.cores import Cores
from compression.benchmarking.inputs import Inputs
from compression.benchmarking.sides import Sides
from compression.benchmarking.spec import BenchmarkSpec
from compression.context import Context
from compression.providers import Provider


@dataclass(frozen=True)
class Subject:
    """Two models and the conditions that hold for both.

    Attributes:
        original: The original, complete in one file.
        compressed: The result.
        spec: What to measure, how long and how.
        context: Folder, threads where `spec` names none, progress from 0 to 1, cancellation.
        inputs: What to run the models on.
        seed: Of made-up inputs, the order of calls and the resampling.
        provider: What runs them.
    """

    original: Path
    compressed: Path
    spec: BenchmarkSpec
    context: Context
    inputs: Inputs
    seed: int
    provider: Provider

    @property
    def threads(self) -> int:
        """Intra-operator threads; 0 for one on each physical core."""
        return self.spec.threads or self.context.threads

    def cores(self, threads: int | None = None) -> Cores:
        """Where calls run that use `threads`, or those of the spec."""
        count = self.threads if threads is None else threads
        return Cores(count, pin=self.spec.pin_threads, start=os.getpid())

    def sides(self, cores: Cores) -> Sides:
        """Both models, loaded.

        Raises:
            StepFailed: `benchmark_failed` when one does not load.
        """
        return Sides(self.original, self.compressed, cores, self.seed, self.provider)
