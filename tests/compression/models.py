"""Small ONNX models for tests, with random but seeded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10


def make_model(nodes, inputs, outputs, weights, *, name="test", opset=OPSET, ir_version=IR_VERSION, domains=()):
    """A checked model from nodes, value infos and a dict of named arrays."""
    graph = helper.make_graph(
        nodes, name, inputs, outputs, [numpy_helper.from_array(value, key) for key, value in weights.items()]
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="tests")
    model.ir_version = ir_version
    onnx.checker.check_model(model)
    return model


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(rng, *shape, dtype=np.float32):
    """Normal weights scaled by the square root of the fan-in, so that activations stay near 1."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(dtype)


def cnn(seed=0, *, batch="batch", channels=(8, 16)):
    """A classifier of 8x8 pictures: two convolutions and a Gemm; input `x` (batch, 1, 8, 8), output `logits`."""
    rng = np.random.default_rng(seed)
    first, second = channels
    weights = {
        "conv1.weight": weight(rng, first, 1, 3, 3),
        "conv1.bias": weight(rng, first),
        "conv2.weight": weight(rng, second, first, 3, 3),
        "conv2.bias": weight(rng, second),
        "fc.weight": weight(rng, 10, second * 16),
        "fc.bias": weight(rng, 10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv1.weight", "conv1.bias"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "conv2.weight", "conv2.bias"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    return make_model(nodes, [value("x", [batch, 1, 8, 8])], [value("logits", [batch, 10])], weights)


def mlp(seed=0, *, features=64, hidden=128, classes=10, dtype=np.float32):
    """Two MatMul + Add layers; input `x` (batch, features), output `logits` (batch, classes)."""
    rng = np.random.default_rng(seed)
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        "w1": weight(rng, hidden, features, dtype=dtype).T.copy(),
        "b1": weight(rng, hidden, dtype=dtype),
        "w2": weight(rng, classes, hidden, dtype=dtype).T.copy(),
        "b2": weight(rng, classes, dtype=dtype),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"], "matmul1"),
        helper.make_node("Add", ["m1", "b1"], ["a1"], "add1"),
        helper.make_node("Relu", ["a1"], ["r1"], "relu1"),
        helper.make_node("MatMul", ["r1", "w2"], ["m2"], "matmul2"),
        helper.make_node("Add", ["m2", "b2"], ["logits"], "add2"),
    ]
    return make_model(
        nodes,
        [value("x", ["batch", features], onnx_type)],
        [value("logits", ["batch", classes], onnx_type)],
        weights,
    )


def embedding(seed=0, *, vocabulary=50, width=16, classes=3):
    """Token ids -> embedding -> mean -> Gemm; input `ids` (batch, sequence) int64, output `logits`."""
    rng = np.random.default_rng(seed)
    weights = {
        "table": weight(rng, vocabulary, width),
        "head": weight(rng, width, classes),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "lookup"),
        helper.make_node("ReduceMean", ["e", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Gemm", ["m", "head"], ["logits"], "head_gemm"),
    ]
    return make_model(
        nodes,
        [value("ids", ["batch", "sequence"], TensorProto.INT64)],
        [value("logits", ["batch", classes])],
        weights,
    )


def two_inputs(seed=0):
    """Adds two projected inputs: `a` (batch, 4) and `b` (batch, 6) to `y` (batch, 5)."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Gemm", ["a", "wa"], ["pa"], "project_a"),
        helper.make_node("Gemm", ["b", "wb"], ["pb"], "project_b"),
        helper.make_node("Add", ["pa", "pb"], ["y"], "sum"),
    ]
    weights = {"wa": weight(rng, 4, 5), "wb": weight(rng, 6, 5)}
    return make_model(nodes, [value("a", ["batch", 4]), value("b", ["batch", 6])], [value("y", ["batch", 5])], weights)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def save_external(model: onnx.ModelProto, path: Path, location: str = "weights.bin") -> Path:
    """Save with every weight in one data file beside the graph."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(
        copy, path, save_as_external_data=True, all_tensors_to_one_file=True, location=location, size_threshold=0
    )
    return path


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def digits():
    """scikit-learn's real digits: pictures (1797, 1, 8, 8) float32 in 0..1, labels (1797,) int64."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return (loaded.images[:, None] / 16).astype(np.float32), loaded.target.astype(np.int64)
