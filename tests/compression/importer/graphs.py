"""Small ONNX graphs, and the comparison with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from compression.graph.to_torch import to_torch
from compression.graph.write_back import write_back

OPSET = 17


def array(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def initializer(name, values):
    return numpy_helper.from_array(np.asarray(values), name)


def value(name, shape, element_type=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, element_type, shape)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, name=f"{operator}_{outputs[0]}", **attributes)


def model(nodes, inputs, outputs, weights, *, opset=OPSET, others=None):
    """Entries are (name, shape[, element type]); shapes of outputs may be None, to be inferred."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [value(*entry) for entry in inputs],
        [value(*entry) for entry in outputs],
        [initializer(name, values) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(others or {})}.items()]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    inferred = list(onnx.shape_inference.infer_shapes(made, strict_mode=True).graph.output)
    made.graph.ClearField("output")
    made.graph.output.extend(inferred)
    onnx.checker.check_model(made)
    return made


def body(nodes, inputs, outputs, weights=None):
    return helper.make_graph(
        nodes,
        "body",
        [value(*entry) for entry in inputs],
        [value(*entry) for entry in outputs],
        [initializer(name, values) for name, values in (weights or {}).items()],
    )


def stored(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def runtime(proto, *inputs):
    """ONNX Runtime's outputs, without its graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def torch_outputs(module, *inputs):
    with torch.no_grad():
        results = module(*(torch.from_numpy(entry) for entry in inputs))
    return [result.numpy() for result in (results if isinstance(results, (tuple, list)) else (results,))]


def perturb(module, seed=0):
    """Every parameter and running statistic changes; variances stay positive."""
    generator = torch.Generator().manual_seed(seed)
    held = {target for binding in module.bindings for target in binding.targets}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if name in held:
            noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
            tensor.data.mul_(1 + noise).add_(0.1 * noise.flip(0))


def check_round_trip(proto, *inputs, tolerance=1e-5):
    """Change everything in the module, write it back: the file computes what the module does. Gives both."""
    module = to_torch(proto)
    untouched = write_back(module, proto)
    assert untouched.SerializeToString() == proto.SerializeToString()
    for got, wanted in zip(torch_outputs(module, *inputs), runtime(proto, *inputs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    perturb(module)
    written = write_back(module, proto)
    onnx.checker.check_model(written)
    for got, wanted, before in zip(
        torch_outputs(module, *inputs), runtime(written, *inputs), runtime(proto, *inputs), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
        assert not np.allclose(wanted, before, rtol=1e-3, atol=1e-3), "nothing changed"
    return module, written
