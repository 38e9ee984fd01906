"""A model against itself, 100 times: how many of the 95 % intervals of the speed-up miss 1.0, and how wide they are.

    python benchmarks/a_a.py                       # the digits model and SqueezeNet 1.1
    python benchmarks/a_a.py digits --busy 2       # beside two processes that never rest
    python benchmarks/a_a.py --seconds 4 --threads 1

Every run loads the same file as original and as result and times them as a job does, with a job's settings; after
five runs a fresh process takes over. For comparison the same pairs go through the plain method: the ratio of the two
medians over all pairs, whose interval resamples single pairs. Wanted: at most 8 of 100 intervals miss, and no more
width than that takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from service import DIGITS, median, table

ALLOWED = 0.08
RUNS_OF_A_PROCESS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "squeezenet1_1"], help="digits, or a torchvision name")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2.0, help="benchmark.max_seconds; the default is a job's")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--free", action="store_true", help="leave it to the system on which cores threads run")
    parser.add_argument("--busy", type=int, default=0, help="processes that take processor time meanwhile")
    parser.add_argument("--seeds", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seeds is not None:
        path = Path(options.models[0])
        print(json.dumps([one(path, options, seed) for seed in options.seeds]))
        return 0
    rows = [
        ("model", "interval", "missed 1.0", "median width", "9 of 10 widths", "median p50", "pairs", "loads", "busy")
    ]
    failed = False
    with tempfile.TemporaryDirectory() as folder, busy(options.busy):
        for name in options.models:
            path = export(name, Path(folder))
            seeds = range(options.runs)
            found = []
            for start in seeds[::RUNS_OF_A_PROCESS]:
                found += run(path, options, seeds[start : start + RUNS_OF_A_PROCESS])
            load = f"{os.getloadavg()[1]:.1f}"
            for method in ("ours", "plain"):
                intervals = np.array([one[method] for one in found])
                missed = int(((intervals[:, 0] > 1) | (intervals[:, 1] < 1)).sum())
                failed |= method == "ours" and missed > ALLOWED * options.runs
                widths = np.ptp(intervals, axis=1)
                rows.append(
                    (
                        name,
                        "Levity's" if method == "ours" else "plain bootstrap",
                        f"{missed} of {options.runs}",
                        f"{median(list(widths)):.2%}",
                        f"{np.quantile(widths, 0.9):.2%}",
                        f"{median([one['p50'] for one in found]) * 1e3:.3f} ms",
                        f"{median([one['pairs'] for one in found]):.0f}",
                        f"{median([one['loads'] for one in found]):.0f}",
                        f"{load} on {os.cpu_count()} cores",
                    )
                )
            luck = [one["between_loads"] for one in found if one["between_loads"] is not None]
            if luck:
                print(f"{name}: between loads {np.sqrt(np.mean(np.square(luck))):.2%} beyond chance", flush=True)
    print(table(rows))
    return int(failed)


def export(name: str, folder: Path) -> Path:
    if name == "digits":
        return DIGITS / "digits-cnn.onnx"
    import torch
    import torchvision

    torch.manual_seed(0)
    path = folder / f"{name}.onnx"
    module = torchvision.models.get_model(name, weights=None).eval()
    torch.onnx.export(module, (torch.zeros(1, 3, 224, 224),), path, dynamo=False, input_names=["x"])
    return path


def run(path: Path, options: argparse.Namespace, seeds: Sequence[int]) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, str(path), "--seconds", str(options.seconds)]
    command += ["--threads", str(options.threads), *["--free"] * options.free, "--seeds", *map(str, seeds)]
    answer: list[dict[str, Any]] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    )
    return answer


def one(path: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One comparison in this process, by the same parts that a job uses."""
    from compression.benchmarking.cores import Cores
    from compression.benchmarking.latency import affordable_loads, time_loads
    from compression.benchmarking.sides import Sides
    from compression.data import synthetic_batches
    from compression.graph.inspect import inspect_model
    from compression.spec import BenchmarkSpec

    spec = BenchmarkSpec(max_seconds=options.seconds, threads=options.threads, pin_threads=not options.free)
    sample = next(synthetic_batches(inspect_model(path), 1, seed, 1)).inputs
    with Cores(spec.threads, pin=spec.pin_threads, start=os.getpid()) as cores:
        sides = Sides(path, path, cores, seed)
        sides.try_out(sample)
        loads = affordable_loads(spec, sides.seconds)
        timings = time_loads(sides.calls(sample), loads, spec, seed)
    found = timings.speed_up(seed)
    return {
        "ours": found.interval,
        "plain": plain(timings.original, timings.result, seed),
        "between_loads": found.between_loads,
        "p50": float(np.median(timings.original)),
        "pairs": len(timings.original),
        "loads": len(timings.loads),
    }


def plain(original: np.ndarray, result: np.ndarray, seed: int) -> tuple[float, float]:
    """The percentile bootstrap of the ratio of medians (Efron 1979): single pairs, from all loads alike."""
    chosen = np.random.default_rng(seed).integers(0, len(original), (2000, len(original)))
    low, high = np.percentile(np.median(original[chosen], axis=1) / np.median(result[chosen], axis=1), (2.5, 97.5))
    return float(low), float(high)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"]) for _ in range(processes)]
    time.sleep(0.1 * processes)
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
