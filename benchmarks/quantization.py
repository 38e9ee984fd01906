"""Static int8 against the defaults of ONNX Runtime's own tool and of NNCF: latency, agreement, accuracy.

Every model of `zoo.py` is quantized three times from the same file and the same calibration samples:

    levity  `{"type": "quantize", "mode": "static", "selection": {"by": "latency"}}`, all else by default
    ort     `onnxruntime.quantization.quantize_static` with its defaults, after its own `quant_pre_process`
    nncf    `nncf.quantize` with its defaults (model_type TRANSFORMER for transformers), in a Python of its own

Then the original and the three results are called in turn, in random order within each round, on `--threads` threads at
batch 1, over several loads, by ONNX Runtime on the CPU; the speed-up over the original is the median of neighbours with
its 95 % interval. A file that does not load or run counts as the original's latency. Agreement is the signal-to-noise
ratio of the outputs against the original's on samples that no calibration saw (random weights for most models, so
accuracy means something for LeNet-5, MiniLM and EfficientNet-Lite0 alone; of the last only 20 pictures exist).

NNCF runs where NNCF_PYTHON names a Python that has it. Building the models needs the `architectures` extra.

    python benchmarks/quantization.py [NAME ...] [--seconds 20] [--threads 1]
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import zoo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compression.benchmarking import paired
from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.quantization.choice.spec import SelectByLatency
from compression.quantization.choice.step import quantize_selected
from compression.quantization.spec import QuantizeStatic

TRANSFORMERS = frozenset({"minilm", "vit_b_16"})
LOADS = 4
WARM_UP = 3
BATCH = 20

Loads = list[tuple[np.ndarray, np.ndarray]]


class Result(NamedTuple):
    """One quantized file.

    Attributes:
        speed_up: Of the original's latency over its own, with its interval; None where it does not run.
        sqnr: Of its outputs, dB.
        accuracy: Share of right answers, where there are labels.
        seconds: What making it took.
        problem: Why it does not run.
    """

    speed_up: paired.SpeedUp | None
    sqnr: float
    accuracy: float | None
    seconds: float
    problem: str = ""

    @property
    def ratio(self) -> float:
        return 1.0 if self.speed_up is None else self.speed_up.ratio


def levity(subject: zoo.Subject, target: Path, folder: Path, threads: int) -> None:
    spec = QuantizeStatic(selection=SelectByLatency(max_seconds=60))
    data = open_dataset(DataSource(folder / "calibration.npz"))
    model = onnx.load(subject.path)
    result, _ = quantize_selected(model, spec, Context(folder, threads=threads), data, 0)
    onnx.save(result, target)


def ort(subject: zoo.Subject, target: Path, folder: Path, _threads: int) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._at = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            at, self._at = self._at, self._at + 1
            part = {name: values[at : at + 1] for name, values in subject.calibration.items()}
            return part if len(next(iter(part.values()))) else None

    prepared = folder / "prepared.onnx"
    try:
        with contextlib.chdir(folder):  # where it leaves what it could not finish
            quant_pre_process(subject.path, prepared)
    except Exception:  # noqa: BLE001 - its symbolic shape inference gives up on some models; the tool works without
        prepared = subject.path
    quantize_static(prepared, target, Reader())


def nncf(subject: zoo.Subject, target: Path, folder: Path, _threads: int) -> None:
    kind = ["--transformer"] if subject.name in TRANSFORMERS else []
    script = str(Path(__file__).with_name("peer_nncf.py"))
    command = [os.environ["NNCF_PYTHON"], script, str(subject.path), str(folder / "calibration.npz"), str(target)]
    done = subprocess.run([*command, *kind], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])


TOOLS: dict[str, Callable[[zoo.Subject, Path, Path, int], None]] = {"levity": levity, "ort": ort, "nncf": nncf}


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(path: Path, inputs: zoo.Arrays, threads: int) -> np.ndarray:
    """(samples, classes): the first output for all samples."""
    runner = session(path, threads)
    count = len(next(iter(inputs.values())))
    parts = [
        runner.run(None, {name: values[at : at + BATCH] for name, values in inputs.items()})[0]
        for at in range(0, count, BATCH)
    ]
    return np.concatenate(parts)


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """dB; infinite where nothing differs."""
    noise = float(np.square(expected.astype(np.float64) - found).sum())
    return 10 * math.log10(float(np.square(expected, dtype=np.float64).sum()) / noise) if noise else math.inf


def timed(original: Path, others: Sequence[Path], inputs: zoo.Arrays, seconds: float, threads: int) -> list[Loads]:
    """For each of the others, load by load, the seconds of the original's calls and of its own."""
    order = random.Random(0)
    one = {name: values[:1] for name, values in inputs.items()}
    found: list[Loads] = [[] for _ in others]
    for _ in range(LOADS):
        runners = [session(path, threads) for path in (original, *others)]
        rounds: list[list[float]] = []
        for runner in runners:
            for _ in range(WARM_UP):
                runner.run(None, one)
        gc.collect()
        gc.disable()
        end = time.perf_counter() + seconds / LOADS
        while time.perf_counter() < end or len(rounds) < 20:
            row = [0.0] * len(runners)
            for which in order.sample(range(len(runners)), len(runners)):
                begun = time.perf_counter()
                runners[which].run(None, one)
                row[which] = time.perf_counter() - begun
            rounds.append(row)
        gc.enable()
        columns = np.array(rounds).T
        for which in range(len(others)):
            found[which].append((columns[0], columns[1 + which]))
    return found


def compare(
    subject: zoo.Subject, tools: Sequence[str], folder: Path, seconds: float, threads: int
) -> dict[str, Result]:
    np.savez(folder / "calibration.npz", **subject.calibration)
    expected = outputs(subject.path, subject.judging, threads)

    def accuracy(found: np.ndarray) -> float | None:
        return None if subject.labels is None else float((found.argmax(1) == subject.labels).mean())

    own = accuracy(expected)
    results: dict[str, Result] = {}
    runnable: dict[str, Path] = {}
    for tool in tools:
        target = folder / f"{tool}.onnx"
        begun = time.perf_counter()
        try:
            TOOLS[tool](subject, target, folder, threads)
            took = time.perf_counter() - begun
            found = outputs(target, subject.judging, threads)
            if not np.isfinite(found).all():
                raise RuntimeError("outputs are not finite")  # noqa: TRY301 - one way to fail, whatever went wrong
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way, and its failure is a result
            problem = f"{type(error).__name__}: {str(error).strip()[:120]}".replace("\n", " ")
            results[tool] = Result(None, -math.inf, None, time.perf_counter() - begun, problem)
            continue
        runnable[tool] = target
        results[tool] = Result(None, sqnr(expected, found), accuracy(found), took)
    loads = timed(subject.path, list(runnable.values()), subject.judging, seconds, threads)
    for tool, one in zip(runnable, loads, strict=True):
        results[tool] = results[tool]._replace(speed_up=paired.speed_up(one, 0))
    for tool, result in results.items():
        speed = "does not run"
        if result.speed_up is not None:
            low, high = result.speed_up.interval
            speed = f"{result.ratio:.2f}x [{low:.2f}, {high:.2f}]"
        right = "" if own is None or result.accuracy is None else f"{100 * result.accuracy:.2f} of {100 * own:.2f} %"
        print(
            f"| {subject.name} | {tool} | {speed} | {result.sqnr:.1f} dB | {right} | {result.seconds:.0f} s "
            f"| {result.problem} |",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(zoo.NAMES), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, for each model")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    tools = [tool for tool in TOOLS if tool != "nncf" or "NNCF_PYTHON" in os.environ]
    print("| model | tool | speed-up over the original | agreement | accuracy, of the original's | made in | problem |")
    print("|---|---|---|---|---|---|---|", flush=True)
    all_results: list[dict[str, Result]] = []
    for name in options.names:
        with tempfile.TemporaryDirectory() as temporary:
            subject = zoo.load(name)
            all_results.append(compare(subject, tools, Path(temporary), options.seconds, options.threads))
    for peer in tools[1:]:
        ratios = [found["levity"].ratio / found[peer].ratio for found in all_results]
        agrees = sum(found["levity"].sqnr >= found[peer].sqnr for found in all_results)
        print(
            f"levity / {peer}: {math.exp(np.log(ratios).mean()):.2f}x faster (geometric mean of {len(ratios)}), "
            f"agreement at least as good on {agrees}"
        )
    print(f"levity's least speed-up over the original: {min(found['levity'].ratio for found in all_results):.2f}x")


if __name__ == "__main__":
    main()
