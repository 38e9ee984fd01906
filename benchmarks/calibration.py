"""Memory and time of static calibration as samples grow, beside ONNX Runtime's calibrators.

    python benchmarks/calibration.py                                # MobileNetV2, 20 and 2,000 samples of 3x224x224
    python benchmarks/calibration.py --model resnet18 --samples 20 200 --peers minmax

Each line is a process of its own, which makes the samples as they are asked for, so that nothing but the calibrator can
hold them. Memory is the most that the process ever held in RAM, imports and model included. Weights are random:
memory and time depend on shapes alone. ONNX Runtime's calibrators are given one sample after the other, as its
documentation does; they keep what they see, and a process that passes `--limit` GiB of address space counts as failed.

Needs the `train` extra (torchvision's architectures and torch's exporter).
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHAPE = (3, 224, 224)
METHODS = ("minmax", "percentile", "entropy", "mse")
PEERS = ("minmax", "percentile", "entropy")
GROWTH_WANTED = 300 << 20


class Noise:
    """Random pictures, made when they are asked for."""

    def __init__(self, samples: int) -> None:
        from compression.signature import DatasetSummary, TensorSpec

        self.summary = DatasetSummary(
            format="npz",
            samples=samples,
            arrays=(TensorSpec(name="x", dtype="float32", shape=(samples, *SHAPE)),),
            has_labels=False,
            classes=None,
            targets=None,
            bytes=samples * math.prod(SHAPE) * 4,
        )

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[Any]:
        from compression.data import Batch

        total = min(self.summary.samples, limit or self.summary.samples)
        for start in range(0, total, batch_size):
            yield Batch({"x": picture(start, min(batch_size, total - start))}, None)


def picture(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE), np.float32)


def ours(model: Path, method: str, samples: int, folder: Path) -> None:
    from compression.context import Context
    from compression.quantization.static import calibrate
    from compression.spec import QuantizeStatic

    spec = QuantizeStatic(calibration=method, calibration_samples=samples)
    calibrate(onnx.load(model), spec, Context(folder, threads=1), Noise(samples))


def peer(model: Path, method: str, samples: int, folder: Path) -> None:
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, calibrate

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._next = 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            self._next += 1
            return {"x": picture(self._next, 1)} if self._next <= samples else None

    kinds = {
        "minmax": calibrate.MinMaxCalibrater,
        "percentile": calibrate.PercentileCalibrater,
        "entropy": calibrate.EntropyCalibrater,
    }
    calibrator = kinds[method](model, augmented_model_path=str(folder / "augmented.onnx"))
    calibrator.augment_graph()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    calibrator.infer_session = onnxruntime.InferenceSession(
        calibrator.augmented_model_path, options, providers=["CPUExecutionProvider"]
    )
    calibrator.collect_data(Reader())
    calibrator.compute_data()


def child(arguments: argparse.Namespace) -> None:
    if arguments.limit:
        size = int(arguments.limit * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        work = ours if arguments.child == "levity" else peer
        work(Path(arguments.model), arguments.method, arguments.samples[0], Path(folder))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def measured(who: str, model: Path, method: str, samples: int, limit: float) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--child", who, "--model", str(model), "--method", method]
    command += ["--samples", str(samples), "--limit", str(limit)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else None


def export(name: str, path: Path) -> None:
    import warnings

    import torch
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            module,
            (torch.zeros(2, *SHAPE),),
            path,
            dynamo=True,
            external_data=False,
            input_names=["x"],
            dynamic_shapes=shapes,
            verbose=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2", help="of torchvision")
    parser.add_argument("--samples", type=int, nargs="+", default=[20, 2000])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--limit", type=float, default=12.0, help="GiB of address space for a peer")
    parser.add_argument("--child", choices=("levity", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    print(f"{arguments.model}, samples of {'x'.join(map(str, SHAPE))}, one thread; peak memory in MB, seconds")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(arguments.model, path)
        lines = [("levity", method) for method in arguments.methods]
        lines += [("peer", method) for method in arguments.peers]
        for who, method in lines:
            found = [
                measured(who, path, method, samples, arguments.limit if who == "peer" else 0)
                for samples in arguments.samples
            ]
            cells = [
                f"{samples} samples: "
                + ("failed" if one is None else f"{one['peak'] / 1e6:.0f} MB, {one['seconds']:.0f} s")
                for samples, one in zip(arguments.samples, found, strict=True)
            ]
            growth = ""
            if found[0] is not None and found[-1] is not None:
                more = found[-1]["peak"] - found[0]["peak"]
                verdict = "within" if more <= GROWTH_WANTED else "beyond"
                growth = f"; {more / 1e6:+.0f} MB, {verdict} the {GROWTH_WANTED >> 20} MiB wanted"
            name = "Levity" if who == "levity" else "ONNX Runtime"
            print(f"{name:13} {method:11} {'; '.join(cells)}{growth}", flush=True)


if __name__ == "__main__":
    main()
