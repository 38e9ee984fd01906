"""Which stored floats are constants of the computation, although they look like weights.

A file does not say which of its tensors are parameters. Training what an exporter has frozen would bend masks and
positions, so what can be told apart is: masks, rotary tables and frequencies, and what no gradient can reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import torch
from onnx import TensorProto

from compression.graph import walk
from compression.graph.operators.dtypes import tensor_from_proto

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
# No gradient passes through these.
_CUTS = frozenset(
    {
        *("And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual"),
        *("NonMaxSuppression", "NonZero", "Not", "Or", "Shape", "Size", "Xor"),
    }
)
# These only move elements.
_MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
_PRODUCTS = frozenset({"Einsum", "MatMul", "Mul"})
_WAVES = frozenset({"Cos", "Sin"})
# Masks add zero to what takes part in a softmax and at least this to what does not.
_MASKED = -50.0


def constants(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the main graph's float initializers that training has to leave alone."""
    graph = _Graph(model)
    stored = {
        tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type in _FLOATS and len(tensor.dims)
    }
    unreached = stored.keys() - graph.with_gradient()
    frequencies = {name for name in stored if graph.is_frequency(name)}
    beside = {
        name: tensor_from_proto(tensor)
        for name, tensor in stored.items()
        if graph.operators(name) <= {"Add", "Mul", *_MOVES}
    }
    masks = {name for name, values in beside.items() if is_mask(values)}
    return frozenset(unreached | frequencies | masks | _rotary_tables(beside))


def is_mask(values: torch.Tensor) -> bool:
    """Whether a tensor holds zeros and one very negative number, nothing else."""
    lowest = values.min() if values.numel() else values.new_zeros(())
    return bool(lowest <= _MASKED) and bool(((values == 0) | (values == lowest)).all())


def _rotary_tables(candidates: Mapping[str, torch.Tensor]) -> set[str]:
    """Pairs whose squares add up to one everywhere: cosines and sines. Su et al. 2021, "RoFormer", section 3.2."""
    found: set[str] = set()
    by_shape: dict[tuple[int, ...], list[tuple[str, torch.Tensor]]] = {}
    for name, values in candidates.items():
        if values.dim() > 1 and values.numel() > 1 and bool(values.abs().max() <= 1.001):
            squares = values.to(torch.float64).square()
            for other, known in by_shape.setdefault(tuple(values.shape), []):
                if bool(((squares + known - 1).abs() < 1e-2).all()) and bool(squares.min() < squares.max()):
                    found |= {name, other}
            by_shape[tuple(values.shape)].append((name, squares))
    return found


class _Graph:
    """Who computes and who reads each value of the main graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._proto = model.graph
        self._opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        self._producers = {name: node for node in model.graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in _all_inputs(node):
                self._readers.setdefault(name, []).append(node)
        self._floats = {value.name for value in model.graph.input if value.type.tensor_type.elem_type in _FLOATS}
        self._floats |= {
            tensor.name for tensor in model.graph.initializer if tensor.data_type in _FLOATS and tensor.dims
        }

    def operators(self, name: str) -> set[str]:
        """Of the nodes that read a value."""
        return {node.op_type for node in self._readers.get(name, [])}

    def with_gradient(self) -> set[str]:
        """Values that a gradient of the outputs reaches."""
        reached = {value.name for value in self._proto.output}
        for node in reversed(self._proto.node):
            if _normalizes_batch(node, self._opset):
                reached.update(node.input[:3])  # its own statistics take the place of the stored ones
            elif not _cuts(node) and not reached.isdisjoint(node.output):
                reached.update(_all_inputs(node))
        return reached

    def is_frequency(self, name: str) -> bool:
        """Whether a stored tensor, times positions, becomes the argument of sines and cosines and nothing else."""
        pending, seen, waves = [(name, False)], {name}, False
        while pending:
            value, multiplied = pending.pop()
            for node in self._readers.get(value, []):
                if node.op_type in _WAVES and multiplied:
                    waves = True
                    continue
                product = node.op_type in _PRODUCTS and not any(
                    self._holds_floats(other) for other in node.input if other != value
                )
                if not product and node.op_type not in _MOVES:
                    return False
                if node.output[0] not in seen:
                    seen.add(node.output[0])
                    pending.append((node.output[0], multiplied or product))
        return waves

    def _holds_floats(self, name: str) -> bool:
        """Whether a value is computed from a float input or a stored float tensor, rather than from positions alone."""
        pending, seen = [name], set()
        while pending:
            value = pending.pop()
            if value in self._floats:
                return True
            node = self._producers.get(value)
            if node is not None and value not in seen and node.op_type not in ("Shape", "Size"):
                seen.add(value)
                pending.extend(_all_inputs(node))
        return False


def _normalizes_batch(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a batch norm is in training mode, which before operator set 14 the number of its outputs says."""
    flag = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    return node.op_type == "BatchNormalization" and (flag or (opset < 14 and len(node.output) > 1))


def _cuts(node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return next(attribute.i for attribute in node.attribute if attribute.name == "to") not in _FLOATS
    return node.op_type in _CUTS


def _all_inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs of a node, and what its bodies read."""
    yield from node.input
    for graph in walk.subgraphs(node):
        for inner in graph.node:
            yield from _all_inputs(inner)
        yield from (value.name for value in graph.output)
