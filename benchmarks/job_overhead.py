"""What the service adds to the work itself, and whether a stranger's own script would have been sooner.

Three ways to the same static-int8 job on the digits model, in turn, over and over:

- service: from POST to the terminal state, seen by long-polling;
- library: `compression.pipeline.run` in a process that has done it before;
- script: `standalone_static_int8.py`, which uses ONNX Runtime directly, started cold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from service import DIGITS, median, running_service, table

from compression.context import Context
from compression.data import DataSource
from compression.pipeline import run
from compression.spec import BenchmarkSpec, PipelineSpec, QuantizeStatic
from levity.client import Levity

MODEL, CALIBRATION, EVALUATION = (DIGITS / name for name in ("digits-cnn.onnx", "calibration.npz", "evaluation.npz"))
SCRIPT = Path(__file__).parent / "standalone_static_int8.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    service_seconds, library_seconds, script_seconds = [], [], []
    with running_service() as service, Levity(service.url) as levity:
        model = levity.create_model(MODEL)
        data = {
            "calibration": levity.create_dataset(CALIBRATION).id,
            "evaluation": levity.create_dataset(EVALUATION).id,
        }
        for number in range(options.rounds + 2):
            # A seed of its own keeps every round out of the step cache.
            spec = PipelineSpec(steps=(QuantizeStatic(),), seed=number, benchmark=BenchmarkSpec(max_seconds=0.5))
            by_service = in_service(levity, model.id, data, spec)
            time.sleep(1.5)  # the next child warms up; a job that comes at once is the queueing benchmark's business
            by_library = in_library(spec)
            by_script = in_script(spec.benchmark)
            if number >= 2:  # the first rounds warm disk caches
                service_seconds.append(by_service)
                library_seconds.append(by_library)
                script_seconds.append(by_script)
    overhead = [ours - bare for ours, bare in zip(service_seconds, library_seconds, strict=True)]
    print(
        table(
            [
                ("what", "median", "lowest", "highest", "wanted"),
                ("service, POST to terminal state", *spread(service_seconds), ""),
                ("library, warm process", *spread(library_seconds), ""),
                ("script on ONNX Runtime, cold", *spread(script_seconds), ""),
                ("service - library", *spread(overhead), "0.5 s"),
                (
                    "script / service",
                    f"{median([s / o for s, o in zip(script_seconds, service_seconds, strict=True)]):.2f}x",
                    "",
                    "",
                    "above 1x",
                ),
            ]
        )
    )


def spread(seconds: list[float]) -> tuple[str, str, str]:
    return tuple(f"{value:.2f} s" for value in (median(seconds), min(seconds), max(seconds)))  # type: ignore[return-value]


def in_service(levity: Levity, model_id: str, data: dict[str, str], spec: PipelineSpec) -> float:
    start = time.perf_counter()
    job = levity.submit(
        model_id,
        [step.model_dump(mode="json") for step in spec.steps],
        data=data,
        benchmark=spec.benchmark.model_dump(mode="json"),
        seed=spec.seed,
    )
    job = levity.wait(job.id)
    seconds = time.perf_counter() - start
    if job.state != "succeeded":
        raise SystemExit(f"job {job.id} {job.state}: {job.error}")
    return seconds


def in_library(spec: PipelineSpec) -> float:
    with tempfile.TemporaryDirectory(prefix="levity-bench-") as folder:
        start = time.perf_counter()
        run(
            MODEL,
            spec,
            Context(workdir=Path(folder)),
            {"calibration": DataSource(CALIBRATION), "evaluation": DataSource(EVALUATION)},
        )
        return time.perf_counter() - start


def in_script(benchmark: BenchmarkSpec) -> float:
    start = time.perf_counter()
    output = subprocess.run(
        [sys.executable, str(SCRIPT), str(MODEL), str(CALIBRATION), str(EVALUATION), str(benchmark.max_seconds)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    json.loads(output)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
