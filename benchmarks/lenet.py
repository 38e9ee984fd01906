"""What benchmarks on MNIST share: Caffe's LeNet-5, its export, and the error of a graph."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn


def lenet5() -> nn.Module:
    """Caffe's LeNet-5, as in Han et al. 2015: 431,080 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def exported(module: nn.Module) -> onnx.ModelProto:
    """The network as ONNX: `image` (n, 1, 28, 28) to `logits`, open in n."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 1, 28, 28),),
            buffer,
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
            opset_version=17,
        )
    return onnx.load_from_string(buffer.getvalue())


def error_percent(model: onnx.ModelProto, pictures: np.ndarray, labels: np.ndarray, threads: int = 0) -> float:
    """Wrong answers of ONNX Runtime, in percent; 0 threads lets it choose."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [session.run(None, {"image": pictures[at : at + 500]})[0].argmax(1) for at in range(0, len(labels), 500)]
    return 100 * float(np.mean(np.concatenate(found) != labels))
