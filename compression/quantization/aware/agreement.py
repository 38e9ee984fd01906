"""How near the graph that came out is to the module that was trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import nn

from compression.context import Context
from compression.graph.to_torch import as_tuple
from compression.quantization import prepare


def agreement(
    module: nn.Module,
    model: onnx.ModelProto,
    input_names: Sequence[str],
    inputs: Sequence[torch.Tensor],
    context: Context,
) -> list[dict[str, object]]:
    """Compare both on some samples, output by output.

    Args:
        module: In evaluation mode, with fake quantizers.
        model: What was exported from it; it runs in ONNX Runtime as it would in use.
        input_names: Names of the module's inputs, in its order.
        inputs: Samples for the module.
        context: Threads.

    Returns:
        For each output: `samples`; `equal`, the share of equal elements; `largest_difference`; and where the output is
        quantized `quantum`, its step, and `largest_difference_in_quanta`. Equal means within a hundredth of the
        quantum, or a millionth of the largest magnitude where there is none.
    """
    with torch.no_grad():
        outputs = module(*inputs)
    expected = [value.cpu().numpy() for value in as_tuple(outputs)]
    feed = {name: value.cpu().numpy() for name, value in zip(input_names, inputs, strict=True)}
    with prepare.runtime_failures("comparing with the trained module"):
        found = prepare.session(model.SerializeToString(), context).run(None, feed)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    quanta = {
        node.output[0]: float(onnx.numpy_helper.to_array(stored[node.input[1]]))
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in stored
    }
    report: list[dict[str, object]] = []
    for output, one, other in zip(model.graph.output, expected, found, strict=True):
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
        largest = float(difference.max(initial=0.0))
        quantum = quanta.get(output.name)
        near = quantum / 100 if quantum else 1e-6 * float(np.abs(one).max(initial=0.0))
        entry: dict[str, object] = {
            "output": output.name,
            "samples": len(inputs[0]),
            "equal": float((difference <= near).mean()) if difference.size else 1.0,
            "largest_difference": largest,
        }
        if quantum:
            entry |= {"quantum": quantum, "largest_difference_in_quanta": largest / quantum}
        report.append(entry)
    return report
