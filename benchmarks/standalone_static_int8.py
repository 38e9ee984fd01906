"""The script that one would write without Levity: static int8 on ONNX Runtime, checked and timed. Prints JSON.

Does what a job does and no more: quantizes, reloads the file in a fresh process, measures accuracy and agreement of
both on the evaluation data, times the two interleaved, and measures the peak memory of each in a process of its own.
"""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

ONE_MODEL = "--one-model"


def main() -> None:
    model, calibration, evaluation, seconds = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "int8.onnx"
        quantize(model, calibration, str(quantized))
        original, small = ort.InferenceSession(model), ort.InferenceSession(str(quantized))
        with np.load(evaluation) as arrays:
            images, labels = arrays["image"], arrays["labels"]
        logits = [session.run(None, {"image": images})[0] for session in (original, small)]
        print(
            json.dumps(
                {
                    "bytes": [Path(path).stat().st_size for path in (model, quantized)],
                    "gzip": [len(gzip.compress(Path(path).read_bytes())) for path in (model, quantized)],
                    "accuracy": [float((scores.argmax(1) == labels).mean()) for scores in logits],
                    "agreement": float((logits[0].argmax(1) == logits[1].argmax(1)).mean()),
                    "latency": interleaved(original, small, images[:1], float(seconds)),
                    "peak memory": [fresh(path) for path in (model, str(quantized))],
                }
            )
        )


def quantize(model: str, calibration: str, target: str) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            with np.load(calibration) as arrays:
                self._samples = iter(np.array_split(arrays["image"][:256], 8))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._samples, None)
            return None if batch is None else {"image": batch}

    prepared = f"{target}.prepared"
    quant_pre_process(model, prepared)
    quantize_static(
        prepared, target, Reader(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
    )


def interleaved(
    one: ort.InferenceSession, other: ort.InferenceSession, image: np.ndarray, seconds: float
) -> list[float]:
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and len(times[0]) < 1000:
        for session, seen in zip((one, other), times, strict=True):
            start = time.perf_counter()
            session.run(None, {"image": image})
            seen.append(time.perf_counter() - start)
    return [float(np.median(seen)) for seen in times]


def fresh(model: str) -> int:
    return int(subprocess.run([sys.executable, __file__, ONE_MODEL, model], capture_output=True, check=True).stdout)


def one_model(model: str) -> None:
    ort.InferenceSession(model).run(None, {"image": np.zeros((1, 1, 8, 8), np.float32)})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    if sys.argv[1] == ONE_MODEL:
        one_model(sys.argv[2])
    else:
        main()
