"""The original and the result, loaded side by side under the same conditions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from compression.benchmarking.cores import Cores
from compression.errors import StepFailed
from compression.fresh_process import Array
from compression.providers import Provider
from compression.runtime import DoesNotRun, Model

Call = Callable[[], object]


class Sides:
    """Both models, in memory from the beginning.

    Args:
        original: The original, complete in one file.
        compressed: The result.
        cores: Where calls will run, for as long as the sides are used.
        seed: Of the order of loading.
        provider: What runs them.

    Attributes:
        seconds: What loading both took.

    Raises:
        StepFailed: `benchmark_failed` when a model does not load.
    """

    def __init__(self, original: Path, compressed: Path, cores: Cores, seed: int, provider: Provider = "cpu") -> None:
        self._paths = (original, compressed)
        self._provider: Provider = provider
        self._cores = cores
        self._number = 0
        self._order = random.Random(seed)  # noqa: S311 - a coin, not a secret
        started = time.perf_counter()
        self._models = self._loaded(0)
        self.seconds = time.perf_counter() - started

    @property
    def models(self) -> tuple[Model, Model]:
        """The original and the result. Whoever keeps them keeps their memory."""
        original, result = self._models
        return original, result

    def try_out(self, sample: Mapping[str, Array], *, only: int | None = None) -> None:
        """Run both once, or one of them.

        Raises:
            StepFailed: `benchmark_failed`, naming the file that does not run.
        """
        for position in (0, 1) if only is None else (only,):
            try:
                self._models[position].run(sample)
            except DoesNotRun as error:
                path = self._paths[position]
                raise StepFailed("benchmark_failed", f"'{path.name}' does not run: {error}") from None

    def calls(self, sample: Mapping[str, Array]) -> Callable[[int], tuple[Call, Call]]:
        """For each load one call of both: of the models that are there first, then of models loaded anew.

        The calling thread is left pinned, until `Cores.release`.
        """

        def load(number: int) -> tuple[Call, Call]:
            if number:
                self._models.clear()  # else four models would be in memory at once
                self._models = self._loaded(number)
            return self.calls_again(sample)

        return load

    def calls_again(self, sample: Mapping[str, Array]) -> tuple[Call, Call]:
        """One call of both as they are loaded now; the calling thread is left pinned, as by `calls`."""
        self._cores.pin(self._number)
        original, result = self._models
        return original.bind(sample), result.bind(sample)

    def _loaded(self, number: int) -> list[Model]:
        self._cores.release()
        self._number = number
        cores = self._cores.of(number)
        reverse = self._order.random() < 0.5
        models = [self._load(path, cores) for path in self._paths[:: -1 if reverse else 1]]
        return models[::-1] if reverse else models

    def _load(self, path: Path, cores: tuple[int, ...]) -> Model:
        try:
            return Model(path, self._cores.threads, cores, provider=self._provider)
        except DoesNotRun as error:
            raise StepFailed("benchmark_failed", f"'{path.name}' does not load: {error}") from None
