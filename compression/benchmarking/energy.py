"""Energy of a call, from the counters of the processor packages.

Linux shows them under `powercap`, for Intel and AMD alike, and since 2020 to root alone unless an administrator decides
otherwise (they tell attackers too much). What cannot be read is not measured, and never a reason to fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compression.benchmarking import paired, statistics
from compression.result import Metric

Call = Callable[[], object]

POWERCAP = Path("/sys/class/powercap")
_BLOCKS = 10


class NotReadable(Exception):
    """There are no counters, or not for this process; the message says which."""


@dataclass(frozen=True)
class _Package:
    counter: Path
    range: int
    """Microjoules after which the counter begins anew."""


class Counters:
    """The energy that all processor packages of this machine have taken.

    Args:
        root: Where the system shows them.

    Raises:
        NotReadable: with the reason in words.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        if not root.is_dir():
            raise NotReadable("this system shows no energy counters")
        found: dict[str, _Package] = {}
        try:
            # The same package may be there twice, read through registers and through memory.
            for zone in sorted(root.iterdir(), key=lambda zone: (len(zone.name), zone.name)):
                name = zone / "name"
                if name.is_file() and name.read_text().startswith("package"):
                    limit = int((zone / "max_energy_range_uj").read_text())
                    found.setdefault(name.read_text().strip(), _Package(zone / "energy_uj", limit))
            self._packages = list(found.values())
            self._last = self._read()
        except PermissionError:
            raise NotReadable("only root may read this system's energy counters") from None
        except (OSError, ValueError) as error:
            raise NotReadable(f"the energy counters cannot be read: {error}") from None
        if not self._packages:
            raise NotReadable("this system shows no energy counters of processor packages")

    def joules(self) -> float:
        """Energy since the last call, or since the beginning.

        Raises:
            NotReadable: The counters are gone.
        """
        try:
            now = self._read()
        except (OSError, ValueError) as error:
            raise NotReadable(f"the energy counters cannot be read: {error}") from None
        taken = [
            (after - before) % (package.range + 1)
            for package, before, after in zip(self._packages, self._last, now, strict=True)
        ]
        self._last = now
        return sum(taken) / 1e6

    def _read(self) -> list[int]:
        return [int(package.counter.read_text()) for package in self._packages]


def energy_metrics(
    original: Call,
    result: Call,
    seconds: float,
    seed: int,
    *,
    root: Path = POWERCAP,
    between_blocks: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Metric], list[str]]:
    """`energy_per_call` of both, from blocks of calls that alternate, and notes on it.

    The counters know nothing of processes: what else the machine does in those seconds is in the numbers of both.

    Args:
        original: One call of the original.
        result: One call of the result.
        seconds: Wall time for both together, 20 blocks.
        seed: Of the resampling.
        root: Where the system shows its counters.
        between_blocks: Called before every block; may raise to stop.
        clock: Seconds on a clock that only moves forward.
    """
    calls = (original, result)
    blocks: list[tuple[float, float]] = []
    try:
        counters = Counters(root)
        for block in range(_BLOCKS):
            pair = [0.0, 0.0]
            for side in (0, 1) if block % 2 else (1, 0):
                between_blocks()
                pair[side] = _joules_per_call(calls[side], seconds / (2 * _BLOCKS), counters, clock)
            blocks.append((pair[0], pair[1]))
    except NotReadable as error:
        return [], [f"Energy was not measured: {error}."]
    joules = np.array(blocks)
    if not (joules > 0).all():
        return [], ["Energy was not measured: the counters stood still; give energy_seconds more time."]
    found = paired.speed_up([(joules[:, 0], joules[:, 1])], seed)
    metric = Metric(
        name="energy_per_call",
        unit="joules",
        direction="lower_is_better",
        original=float(np.median(joules[:, 0])),
        result=float(np.median(joules[:, 1])),
        ratio=found.ratio,
        interval=found.interval,
        interval_of="ratio",
        samples=_BLOCKS,
        verdict=statistics.ratio_verdict(found.ratio, found.interval, ("more energy", "less energy")),
    )
    return [metric], ["Energy is that of the whole processor, with whatever else ran on it meanwhile."]


def _joules_per_call(call: Call, seconds: float, counters: Counters, clock: Callable[[], float]) -> float:
    end = clock() + seconds
    counters.joules()
    done = 0
    while not done or clock() < end:
        call()
        done += 1
    return counters.joules() / done
