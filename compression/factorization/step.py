"""Factorization of an ONNX graph's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.context import Context
from compression.errors import StepFailed
from compression.factorization import decomposition
from compression.factorization.spec import Factorize
from compression.graph import walk
from compression.graph.weights import Array, Weight, find_weights, read, select

_BISECTIONS = 40


@dataclass(frozen=True)
class _Layer:
    """A layer that can be split, with what choosing its ranks needs.

    Attributes:
        weight: What it multiplies by.
        values: The weight as (outputs, inputs, *window).
        spectra: Singular values that bound the ranks: one for a matrix, two (outputs, inputs) for a Tucker split.
        node: Its node.
    """

    weight: Weight
    values: Array
    spectra: tuple[decomposition.Floats, ...]
    node: onnx.NodeProto

    def parameters(self, ranks: Sequence[int]) -> int:
        """Elements of the factors for given ranks."""
        outputs, inputs, *window = (int(length) for length in self.values.shape)
        area = math.prod(window)
        if len(ranks) == 2:
            return outputs * ranks[0] + ranks[0] * ranks[1] * area + ranks[1] * inputs
        return ranks[0] * (outputs + inputs * area)

    def ranks(self, choose: Callable[[decomposition.Floats], int], multiple: int) -> tuple[int, ...]:
        return tuple(decomposition.rounded(choose(found), multiple, found.size) for found in self.spectra)


def factorize(model: onnx.ModelProto, spec: Factorize, context: Context) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Split Conv, Gemm and MatMul layers into thinner ones where that saves parameters.

    Returns:
        The new model (the argument is not changed), and per weight its ranks, its parameters before and after and the
        relative error of its values, or why it was skipped.

    Raises:
        StepFailed: `unknown_name`, `no_weights`, `non_finite_weights`, or `target_unreachable`.
    """
    candidates = [weight for weight in find_weights(model) if not weight.is_embedding]
    chosen = select(candidates, spec.include, spec.exclude)
    layers: dict[str, _Layer] = {}
    skipped: dict[str, str] = {}
    for done, (weight, values) in enumerate(read(model, chosen)):
        context.check_cancelled()
        context.progress("factorizing", 0.5 * done / len(chosen), weight.name)
        found = _layer(model, weight, values, spec)
        if isinstance(found, str):
            skipped[weight.name] = found
        else:
            layers[weight.name] = found
    energy = spec.energy
    if spec.target_parameters is not None:
        energy = _energy_for(spec.target_parameters, chosen, layers, spec.round_to)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    report: list[dict[str, object]] = []
    after = 0
    for done, weight in enumerate(chosen):
        context.check_cancelled()
        context.progress("factorizing", 0.5 + 0.5 * done / len(chosen), weight.name)
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape)}
        layer = layers.get(weight.name)
        ranks = layer.ranks(_choice(spec, energy), spec.round_to) if layer is not None else ()
        if layer is None:
            entry["skipped"] = skipped[weight.name]
        elif layer.parameters(ranks) >= weight.size:
            entry["skipped"] = f"rank {' x '.join(map(str, ranks))} would take {layer.parameters(ranks)} parameters"
        else:
            error = _split(result, layer, ranks)
            entry |= {"ranks": list(ranks), "parameters": layer.parameters(ranks), "relative_error": error}
            after += layer.parameters(ranks) - weight.size
        report.append(entry)
    before = sum(weight.size for weight in chosen)
    return result, {"parameters_before": before, "parameters": before + after, "weights": report}


def _choice(spec: Factorize, energy: float | None) -> Callable[[decomposition.Floats], int]:
    share = spec.rank_share
    if share is not None:
        return lambda singular: max(1, round(share * singular.size))
    wanted = energy if energy is not None else 1.0
    return lambda singular: decomposition.rank_for_energy(singular, wanted)


def _energy_for(target: float, chosen: Sequence[Weight], layers: dict[str, _Layer], multiple: int) -> float:
    """The most energy that all layers can keep within the target."""
    before = sum(weight.size for weight in chosen)

    def parameters(energy: float) -> int:
        total = before
        for layer in layers.values():
            ranks = layer.ranks(lambda singular: decomposition.rank_for_energy(singular, energy), multiple)
            total += min(layer.parameters(ranks) - layer.weight.size, 0)
        return total

    low, high = 0.0, 1.0
    if parameters(low) > target * before:
        raise StepFailed(
            "target_unreachable",
            f"Rank {multiple} in every layer leaves {parameters(low) / before:.1%} of the selected layers' parameters; "
            f"target_parameters asks for {target:.1%}.",
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if parameters(middle) <= target * before else (low, middle)
    return low


def _layer(model: onnx.ModelProto, weight: Weight, values: Array, spec: Factorize) -> _Layer | str:
    """What can be split, or in words why it cannot."""
    nodes = [node for node in walk.nodes(model) if weight.name in node.input]
    top = [node for node in model.graph.node if weight.name in node.input]
    if len(nodes) != 1 or len(top) != 1 or nodes[0].op_type not in ("Conv", "Gemm", "MatMul"):
        return "only a Conv, Gemm or MatMul of the main graph that has the weight to itself is split"
    node = top[0]
    if node.input[1] != weight.name or (node.op_type == "MatMul" and values.ndim != 2):
        return "only a single matrix on the right of a product is split"
    if node.op_type == "Conv":
        if _attribute(node, "group", 1) != 1:
            return "grouped convolutions are not split"
        kernel = values
    else:
        kernel = values if _attribute(node, "transB", 0) else values.T
    if min(kernel.shape[:2]) < 2:
        return "a single channel has rank 1 already"
    if kernel.ndim > 2 and max(kernel.shape[2:]) > 1 and spec.convolution == "tucker":
        return _Layer(weight, kernel, decomposition.channel_spectra(kernel), node)
    flat = kernel.reshape(len(kernel), -1).astype(np.float64)
    singular = np.asarray(np.linalg.svd(flat, compute_uv=False), np.float64)
    return _Layer(weight, kernel, (singular,), node)


def _split(model: onnx.ModelProto, layer: _Layer, ranks: Sequence[int]) -> float:
    """Replace the layer's node by its factors; the relative error of the weight."""
    index, node = next(
        (index, node) for index, node in enumerate(model.graph.node) if node.output[0] == layer.node.output[0]
    )
    if node.op_type == "Conv":
        factors, nodes, approximation = _conv(node, layer, ranks)
    else:
        factors, nodes, approximation = _product(node, layer, ranks[0])
    _check_free(model, (*factors, *(output for new in nodes[:-1] for output in new.output)))
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == layer.weight.name)
    model.graph.initializer.remove(stored)
    dtype = helper.tensor_dtype_to_np_dtype(stored.data_type)
    for name, values in factors.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), name))
    model.graph.node.remove(node)
    for offset, new in enumerate(nodes):
        model.graph.node.insert(index + offset, new)
    whole = layer.values.astype(np.float64)
    norm = float(np.linalg.norm(whole))
    return float(np.linalg.norm(whole - approximation)) / norm if norm else 0.0


_Parts = tuple[dict[str, Array], list[onnx.NodeProto], Array]


def _product(node: onnx.NodeProto, layer: _Layer, rank: int) -> _Parts:
    left, right = decomposition.split_matrix(layer.values, rank)  # (outputs, rank), (rank, inputs)
    first, second = f"{layer.weight.name}.inputs", f"{layer.weight.name}.outputs"
    between = f"{node.output[0]}.rank"
    name = walk.display_name(node)
    if node.op_type == "MatMul":
        nodes = [
            helper.make_node("MatMul", [node.input[0], first], [between], f"{name}.inputs"),
            helper.make_node("MatMul", [between, second], [node.output[0]], f"{name}.outputs"),
        ]
        return {first: right.T, second: left.T}, nodes, left @ right
    nodes = [
        helper.make_node(
            "Gemm",
            [node.input[0], first],
            [between],
            f"{name}.inputs",
            transB=1,
            alpha=_attribute(node, "alpha", 1.0),
            transA=_attribute(node, "transA", 0),
        ),
        helper.make_node(
            "Gemm",
            [between, second, *node.input[2:]],
            [node.output[0]],
            f"{name}.outputs",
            transB=1,
            beta=_attribute(node, "beta", 1.0),
        ),
    ]
    return {first: right, second: left}, nodes, left @ right


def _conv(node: onnx.NodeProto, layer: _Layer, ranks: Sequence[int]) -> _Parts:
    name, stem = walk.display_name(node), layer.weight.name
    outputs, inputs, *window = layer.values.shape
    ones = [1] * len(window)
    into, out = f"{node.output[0]}.inputs", f"{node.output[0]}.rank"
    attributes = [attribute for attribute in node.attribute if attribute.name != "kernel_shape"]
    last = helper.make_node(
        "Conv", [out, f"{stem}.outputs", *node.input[2:]], [node.output[0]], f"{name}.outputs", kernel_shape=ones
    )
    if len(ranks) == 1:
        left, right = decomposition.split_matrix(layer.values.reshape(outputs, -1), ranks[0])
        kernel = right.reshape(ranks[0], inputs, *window)
        core = helper.make_node("Conv", [node.input[0], f"{stem}.kernel"], [out], f"{name}.kernel", kernel_shape=window)
        core.attribute.extend(attributes)
        factors: dict[str, Array] = {f"{stem}.kernel": kernel, f"{stem}.outputs": left.reshape(outputs, -1, *ones)}
        return factors, [core, last], (left @ right).reshape(layer.values.shape)
    outer, middle, inner = decomposition.tucker(layer.values, ranks[0], ranks[1])
    first = helper.make_node("Conv", [node.input[0], f"{stem}.inputs"], [into], f"{name}.inputs", kernel_shape=ones)
    core = helper.make_node("Conv", [into, f"{stem}.kernel"], [out], f"{name}.kernel", kernel_shape=window)
    core.attribute.extend(attributes)
    factors = {
        f"{stem}.inputs": inner.T.reshape(ranks[1], inputs, *ones),
        f"{stem}.kernel": middle,
        f"{stem}.outputs": outer.reshape(outputs, ranks[0], *ones),
    }
    return factors, [first, core, last], np.einsum("rs...,or,is->oi...", middle, outer, inner)


def _check_free(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Raise `StepFailed` `name_taken` when the graph has a value of such a name: two would silently be one."""
    taken = {name for graph, _ in walk.graphs(model) for name in walk.defined(graph)}
    for name in names:
        if name in taken:
            raise StepFailed("name_taken", f"The graph has a value '{name}' already, which a factor would be called.")


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    found: Iterable[onnx.AttributeProto] = (attribute for attribute in node.attribute if attribute.name == name)
    for attribute in found:
        value: float = helper.get_attribute_value(attribute)
        return value
    return default
