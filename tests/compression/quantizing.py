"""What the tests of quantization share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.quantization.step import quantize

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def dataset(folder, **arrays):
    """A calibration dataset of the given arrays, in `folder`."""
    path = folder / "calibration.npz"
    np.savez(path, **arrays)
    return open_dataset(DataSource(path))


def apply(model, spec, folder, calibration=None):
    """The quantized model, checked by ONNX's checker too, and the details."""
    workdir = folder / "work"
    workdir.mkdir(exist_ok=True)
    result, details = quantize(model, spec, Context(workdir=workdir, threads=1), calibration, seed=0)
    onnx.checker.check_model(result, full_check=True)
    return result, details


def outputs(model, **inputs):
    """The model's first output in ONNX Runtime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def stored(model):
    """Initializers by name, as arrays."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def sqnr(expected, found):
    """Signal to quantization noise, in dB."""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum())


def digits_model():
    return onnx.load(DIGITS / "digits-cnn.onnx")


def digits_calibration():
    return open_dataset(DataSource(DIGITS / "calibration.npz"))


def digits_accuracy(model):
    """Share of the 450 held-out digits that the model tells right."""
    held_out = np.load(DIGITS / "evaluation.npz")
    kind = model.graph.input[0].type.tensor_type.elem_type
    images = held_out["image"].astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    return float((outputs(model, image=images).argmax(1) == held_out["labels"]).mean())
