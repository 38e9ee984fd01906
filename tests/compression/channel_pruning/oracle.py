"""An independent statement of what channel pruning has to compute.

Where all parameters that lead into a channel are zero the channel carries zeros, and a graph without it computes the
same. So the original with these parameters set to zero must agree with the pruned file.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from compression.context import Context
from compression.graph.weights import find_weights, select
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels import step
from compression.pruning.channels.engine import analyse
from compression.pruning.channels.groups import plan
from compression.pruning.channels.importance import Scorer
from compression.pruning.channels.rewrite import Rewriter
from compression.pruning.channels.sharing import told_apart


def prune(model, tmp_path, *, seed=0, **fields):
    return step.prune_channels(model, PruneChannels(**fields), Context(workdir=tmp_path), seed)


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def random_inputs(model, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        shape = [axis.dim_value or batch for axis in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            inputs[value.name] = rng.integers(0, 10, shape)
        else:
            inputs[value.name] = rng.standard_normal(shape).astype(np.float32)
    return inputs


def zeroed_and_pruned(model, *, seed=0, **fields):
    """The original with the removed channels' incoming parameters set to zero, and the pruned model.

    Only what leads into a channel is touched: a layer's rows, its bias, vectors that scale or shift. What reads the
    channel stays, so a reader that loses the wrong column shows.
    """
    spec = PruneChannels(importance="random", **fields)
    apart, _ = told_apart(model)
    engine = analyse(apart, step.RULES)
    weights = find_weights(model)
    chosen = {weight.name for weight in select(weights, spec.include, spec.exclude)}
    layout = plan(engine, {weight.name: weight.name in chosen for weight in weights})
    removed = step._choose(model, engine, layout, spec, Scorer(engine, spec.importance, seed))
    pruned = Rewriter(engine, layout, removed).run()
    into = {(producer.weight, producer.axis) for producer in engine.producers}
    into |= {(node.input[2], 1) for node in apart.graph.node if node.op_type in ("RNN", "GRU", "LSTM")}
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(apart)
    for tensor in zeroed.graph.initializer:
        lines = layout.weights.get(tensor.name, {})
        stored_by_axis = {weight for weight, _ in engine.axes}
        values = numpy_helper.to_array(tensor).copy()
        for axis, line in lines.items():
            if (tensor.name, axis) in into or tensor.name not in stored_by_axis:
                gone = np.isin(layout.lines[line], removed)
                np.moveaxis(values, axis, 0)[gone] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return zeroed, pruned


def assert_exact(model, *, inputs=None, tolerance=1e-5, **fields):
    """Compare the two on random inputs; the pruned model comes back."""
    zeroed, pruned = zeroed_and_pruned(model, **fields)
    onnx.checker.check_model(pruned, full_check=True)
    inputs = inputs or random_inputs(model)
    expected, found = run(zeroed, inputs), run(pruned, inputs)
    before = run(model, inputs)
    assert any(np.abs(old - new).max() > 1e-4 for old, new in zip(before, found, strict=True)), "nothing was removed"
    for one, other in zip(expected, found, strict=True):
        scale = max(1.0, float(np.abs(one).max()))
        np.testing.assert_allclose(other, one, atol=tolerance * scale, rtol=0)
    return pruned
