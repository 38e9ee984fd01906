"""Shapes and small values of everything in a graph, for one fixed size of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compression.graph.macs import fixed_batch
from compression.graph.weights import Array

# Elements of values that are kept: lengths and places are whole numbers, and shape inference reads only the shortest.
_SMALL, _SMALL_WHOLE = 2048, 1 << 16
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


# Arithmetic on lengths, of which large graphs hold thousands of nodes; the rest goes to the reference implementation.
_QUICK: dict[str, Callable[..., Array]] = {
    "Add": lambda left, right: np.asarray(left + right),
    "Sub": lambda left, right: np.asarray(left - right),
    "Mul": lambda left, right: np.asarray(left * right),
    "Concat": lambda *parts: np.concatenate(parts),
    "Gather": lambda data, places: np.asarray(data[places]),
    "Unsqueeze": lambda data, axes: np.expand_dims(data, tuple(axes.tolist())),
}


@dataclass(frozen=True)
class Lengths:
    """What open axes of inputs are taken to be: two samples, so that the batch is told from axes of length 1.

    Attributes:
        batch: The first axis.
        pixels: Other axes of tensors of rank 4 and more.
        steps: Other axes.
    """

    batch: int = 2
    pixels: int = 224
    steps: int = 16


USUAL, OTHER = Lengths(), Lengths(batch=3, pixels=256, steps=20)


def input_types(graph: onnx.GraphProto, lengths: Lengths) -> dict[str, onnx.TypeProto]:
    """Types of the graph's inputs with every open axis given a length; axes of one name get one length."""
    stored = {tensor.name for tensor in graph.initializer}
    named: dict[str, int] = {}
    found = {}
    for value in graph.input:
        if value.name in stored or not value.type.HasField("tensor_type"):
            continue
        kind = onnx.TypeProto()
        kind.CopyFrom(value.type)
        axes = kind.tensor_type.shape.dim
        for position, axis in enumerate(axes):
            if not axis.HasField("dim_value"):
                usual = lengths.batch if position == 0 else lengths.pixels if len(axes) > 3 else lengths.steps
                axis.dim_value = named.setdefault(axis.dim_param, usual) if axis.dim_param else usual
        found[value.name] = kind
    return found


class Folding:
    """What is known of each value: its shape, and its elements where they are few and follow from constants and shapes.

    Args:
        model: Opsets are taken from it, and constants, to which `put` adds.
        lengths: Of open axes.
    """

    def __init__(self, model: onnx.ModelProto, lengths: Lengths = USUAL) -> None:
        self._opsets = list(model.opset_import)
        self._versions = {"" if one.domain == "ai.onnx" else one.domain: one.version for one in model.opset_import}
        self._inputs = input_types(model.graph, lengths)
        self._types: dict[str, onnx.TypeProto] = dict(self._inputs)
        self.values: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            self.put(tensor)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        version: int = self._versions.get("", 1)
        return version

    def samples(self, model: onnx.ModelProto) -> int:
        """How many samples the shapes are for."""
        axes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name in self._inputs]
        open_batch = any(lengths and not lengths[0].HasField("dim_value") for lengths in axes)
        return USUAL.batch if open_batch else fixed_batch(model)

    def names(self) -> Iterator[str]:
        """Every value of which something is known."""
        return iter(self._types)

    def put(self, tensor: onnx.TensorProto) -> None:
        """Take in a stored tensor."""
        self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        value = _small_tensor(tensor)
        if value is not None:
            self.values[tensor.name] = value

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Lengths of the axes of a value, None where they are not known."""
        kind = self._types.get(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        axes = kind.tensor_type.shape.dim
        if not all(axis.HasField("dim_value") for axis in axes):
            return None
        return tuple(int(axis.dim_value) for axis in axes)

    def visit(self, node: onnx.NodeProto) -> None:
        """Learn what one node computes; nodes come in the order of the graph."""
        value = self._value(node)
        if value is not None:
            self.values[node.output[0]] = value
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            self._types[node.output[0]] = helper.make_tensor_type_proto(kind, list(value.shape))
            return
        for name, inferred in self._infer(node).items():
            self._types[name] = inferred

    def _infer(self, node: onnx.NodeProto) -> Mapping[str, onnx.TypeProto]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        types = {name: self._types[name] for name in node.input if name in self._types}
        small = {name: self.values[name] for name in node.input if name in self.values}
        data = {name: numpy_helper.from_array(value, name) for name, value in small.items() if value.size <= _SMALL}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions.get(domain, 1), domain)
            inferred: Mapping[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=self._opsets
            )
        except (RuntimeError, ValueError, TypeError, KeyError, onnx.defs.SchemaError):
            return {}  # not an operator that ONNX knows, or one whose operands are not known: neither is its result
        except onnx.shape_inference.InferenceError:
            return {}
        return inferred

    def _value(self, node: onnx.NodeProto) -> Array | None:
        if node.domain not in ("", "ai.onnx") or len(node.output) != 1 or node.op_type in _RANDOM:
            return None
        if node.op_type == "Shape":
            return self._shape_value(node)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            return _small_tensor(node.attribute[0].t)
        return self._computed(node)

    def _computed(self, node: onnx.NodeProto) -> Array | None:
        """The result of a node all of whose operands are known."""
        operands = {name: self.values[name] for name in node.input if name in self.values}
        if any(name and name not in operands for name in node.input) or any(
            one.HasField("g") for one in node.attribute
        ):
            return None
        quick = _QUICK.get(node.op_type)
        if quick is not None and all(one.dtype == np.int64 and one.ndim < 2 for one in operands.values()):
            return quick(*(operands[name] for name in node.input))
        kind = self._infer(node).get(node.output[0])
        if kind is not None and kind.tensor_type.HasField("shape"):
            lengths = [axis.dim_value for axis in kind.tensor_type.shape.dim]
            if np.prod(lengths, dtype=np.int64) > _limit(kind.tensor_type.elem_type):
                return None
        return self._evaluated(node, operands)

    def _evaluated(self, node: onnx.NodeProto, operands: Mapping[str, Array]) -> Array | None:
        body = helper.make_graph(
            [node],
            "fold",
            [helper.make_value_info(name, self._types[name]) for name in operands],
            [helper.make_value_info(node.output[0], onnx.TypeProto())],
        )
        alone = helper.make_model(body, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            (value,) = ReferenceEvaluator(alone).run(None, dict(operands))
        except Exception:  # noqa: BLE001 - the reference implementation raises whatever NumPy does
            return None
        array = np.asarray(value)
        if array.dtype == np.object_ or array.dtype.kind in "US":
            return None
        return array if array.size <= _limit(helper.np_dtype_to_tensor_dtype(array.dtype)) else None

    def _shape_value(self, node: onnx.NodeProto) -> Array | None:
        shape = self.shape(node.input[0])
        if shape is None:
            return None
        attributes = {one.name: one.i for one in node.attribute}
        return np.array(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], np.int64)


def _limit(kind: int) -> int:
    return _SMALL_WHOLE if kind in (TensorProto.INT32, TensorProto.INT64) else _SMALL


def _small_tensor(tensor: onnx.TensorProto) -> Array | None:
    if np.prod(tensor.dims, dtype=np.int64) > _limit(tensor.data_type) or tensor.data_type == TensorProto.STRING:
        return None
    return np.asarray(numpy_helper.to_array(tensor))


def settled_values(model: onnx.ModelProto, known: Folding) -> frozenset[str]:
    """Names of small values that are the same whatever the lengths of open axes."""
    other = Folding(model, OTHER)
    for node in model.graph.node:
        other.visit(node)
    return frozenset(
        name
        for name, value in known.values.items()
        if name in other.values and np.array_equal(value, other.values[name])
    )
