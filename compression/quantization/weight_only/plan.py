"""Where and how each weight will be held, decided before any is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from compression.graph import walk
from compression.graph.weights import Weight
from compression.quantization.spec import QuantizeWeightOnly
from compression.quantization.weight_only import capabilities
from compression.quantization.weight_only.capabilities import Form

# Operator sets of DequantizeLinear with one scale for each channel, float32 and half precision.
_PER_CHANNEL_OPSET = {"float32": 13, "float16": 19}


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a weight from the right: MatMul, or Gemm whose first input is not transposed."""

    node: str
    """The node's first output."""
    transposed: str | None = None
    """The value between weight and node where a Transpose lies there."""


@dataclass(frozen=True)
class Plan:
    """How one weight will be held.

    Attributes:
        weight: The weight.
        form: The operator that will read the codes.
        stored_bits: In which each code is held.
        layout: (stacks, inputs, columns), see `groupwise`; a reshape of the weight.
        group_size: Weights that share a scale.
        symmetric: No zero points are held.
        products: The nodes to rewrite, for MatMulNBits.
        alpha: What Gemms multiply their product by.
    """

    weight: Weight
    form: Form
    stored_bits: int
    layout: tuple[int, int, int]
    group_size: int
    symmetric: bool
    products: tuple[Product, ...] = ()
    alpha: float = 1.0

    @property
    def groups(self) -> int:
        """Groups along the inputs."""
        return -(-self.layout[1] // self.group_size)

    @property
    def per_channel(self) -> bool:
        """Whether DequantizeLinear needs no blocks: each entry of the first axis has a single scale."""
        return self.form == "DequantizeLinear" and self.groups == 1 and self.layout[2] == 1

    @property
    def opset(self) -> int:
        """The operator set that the model must have."""
        if self.form != "DequantizeLinear":
            return 1
        if self.per_channel and self.stored_bits == 8:
            return _PER_CHANNEL_OPSET[self.weight.dtype]
        return capabilities.OPSETS[self.stored_bits]

    @property
    def bytes_at_rest(self) -> int:
        """Bytes of codes, scales and zero points."""
        stacks, inputs, columns = self.layout
        scales = stacks * self.groups * columns
        padded = self.groups * self.group_size if self.form == "MatMulNBits" else inputs
        codes = math.ceil(stacks * padded * columns * self.stored_bits / 8)
        rows = 1 if self.form == "DequantizeLinear" else stacks * columns  # each begins with a byte of its own
        zero_points = 0 if self.symmetric else rows * math.ceil(scales // rows * self.stored_bits / 8)
        return codes + scales * (4 if self.weight.dtype == "float32" else 2) + zero_points


def plan_all(
    model: onnx.ModelProto, weights: Sequence[Weight], spec: QuantizeWeightOnly, opset: int
) -> dict[str, Plan | str]:
    """For each weight by name its plan, or why it stays as it is.

    Args:
        model: The float model; every node is named, and biases are plain (`gemm.with_plain_biases`).
        weights: The chosen weights.
        spec: Bits and groups.
        opset: The highest operator set that the model can have.
    """
    consumers = _consumers(model)
    outputs = {value.name for graph, _ in walk.graphs(model) for value in graph.output}
    return {weight.name: _plan(weight, consumers, outputs, spec, opset) for weight in weights}


def _plan(
    weight: Weight,
    consumers: Mapping[str, Sequence[tuple[onnx.NodeProto, bool]]],
    outputs: Iterable[str],
    spec: QuantizeWeightOnly,
    opset: int,
) -> Plan | str:
    if weight.name in outputs:
        return "it is an output of the model"
    users = consumers.get(weight.name, ())
    products = None if len(weight.shape) != 2 else _products(weight, consumers, outputs)
    form: Form = "DequantizeLinear"
    layout, alpha = _layout(weight), 1.0
    found: tuple[Product, ...] = ()
    if products is not None:
        form = "MatMulNBits"
        layout, alpha, found = products
    elif all(_looks_up(node, weight, inner=inner) for node, inner in users):
        stored = capabilities.width("GatherBlockQuantized", spec.weight_bits)
        if stored is not None and weight.shape[1] * stored % 8 == 0:
            form = "GatherBlockQuantized"
    stored = capabilities.width(form, spec.weight_bits, opset)
    if stored is None and form == "DequantizeLinear" and opset < min(capabilities.OPSETS.values()):
        return f"its layer needs operator set {capabilities.OPSETS[8]}, to which the model cannot be converted"
    if stored is None:
        return capabilities.unsupported(form, spec.weight_bits)
    plan = Plan(weight, form, stored, layout, spec.group_size, spec.is_symmetric, found, alpha)
    held = weight.size * (4 if weight.dtype == "float32" else 2)
    if plan.bytes_at_rest >= held:
        return f"codes and scales would take {plan.bytes_at_rest} bytes, and it has {held}"
    return plan


def _layout(weight: Weight) -> tuple[int, int, int]:
    """(stacks, inputs, columns) of a weight as it lies in memory."""
    axis = weight.input_axis
    if axis is None or (axis == 1 and weight.output_axis == 0):
        # Embeddings, and convolutions: an output sums over channels and kernel alike.
        return weight.shape[0], math.prod(weight.shape[1:]), 1
    return math.prod(weight.shape[:axis]), weight.shape[axis], math.prod(weight.shape[axis + 1 :])


def _consumers(model: onnx.ModelProto) -> dict[str, list[tuple[onnx.NodeProto, bool]]]:
    """By value, the nodes that read it, and whether they lie in a subgraph."""
    found: dict[str, list[tuple[onnx.NodeProto, bool]]] = {}
    for graph, depth in walk.graphs(model):
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append((node, depth > 0))
    return found


def _products(
    weight: Weight, consumers: Mapping[str, Sequence[tuple[onnx.NodeProto, bool]]], outputs: Iterable[str]
) -> tuple[tuple[int, int, int], float, tuple[Product, ...]] | None:
    """Layout, factor and products where nothing but products uses a matrix, all in the same way; else None."""
    found: list[Product] = []
    ways: set[tuple[bool, float]] = set()
    readers = [(weight.name, node, inner) for node, inner in consumers.get(weight.name, ())]
    while readers:
        value, node, inner = readers.pop(0)
        flipped = value != weight.name
        if node.op_type == "Transpose" and not inner and not flipped and node.output[0] not in outputs:
            readers += [(node.output[0], *reader) for reader in consumers.get(node.output[0], ())]
            continue
        if inner or not _multiplies(node, value):
            return None
        attributes = {attribute.name: attribute for attribute in node.attribute}
        turned = node.op_type == "Gemm" and "transB" in attributes and attributes["transB"].i != 0
        alpha = attributes["alpha"].f if node.op_type == "Gemm" and "alpha" in attributes else 1.0
        ways.add((turned != flipped, alpha))
        found.append(Product(node.output[0], value if flipped else None))
    if len(ways) != 1:
        return None
    ((rows_are_outputs, alpha),) = ways
    rows, columns = weight.shape
    return (rows, columns, 1) if rows_are_outputs else (1, rows, columns), alpha, tuple(found)


def _multiplies(node: onnx.NodeProto, value: str) -> bool:
    if list(node.input).count(value) != 1 or list(node.input).index(value) != 1:
        return False
    if node.op_type == "MatMul":
        return True
    attributes = {attribute.name: attribute for attribute in node.attribute}
    beta = attributes["beta"].f if "beta" in attributes else 1.0
    biased = len(node.input) > 2 and node.input[2] != ""
    turned = "transA" in attributes and attributes["transA"].i != 0
    return node.op_type == "Gemm" and not turned and (beta == 1.0 or not biased)


def _looks_up(node: onnx.NodeProto, weight: Weight, *, inner: bool) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    position = list(node.input).index(weight.name)
    return node.op_type == "Gather" and position == 0 and axis == 0 and not inner and len(weight.shape) == 2
