"""Channels of a float graph rescaled so that few bits serve them all: what one node is divided by, the next multiplies.

The graph computes the same. Factors are powers of two, so it does to the last bit: neither products nor sums with them
round anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from compression.graph import shapes, walk
from compression.graph.weights import replace as replace_weights
from compression.quantization.integer.plan import Anatomy, Layer

Array = npt.NDArray[Any]

# f(s x) = s f(x) for s > 0, channel by channel. A Clip is none: ReLU6 cuts all channels at one value, and where a
# channel was rescaled it would cut elsewhere, which no number of calibration samples makes harmless.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Identity", "Dropout"})
# The same, where channels are the second axis.
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
# From (n, channels, *positions) to (n, channels * positions).
_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_SWEEPS = 20
_LARGEST_EXPONENT = 12


@dataclass(frozen=True)
class Link:
    """A value whose channels can be rescaled.

    Attributes:
        value: What the consumers read.
        producer: Name of the layer, or of the LayerNormalization, that makes it or what only lets factors pass.
        rows: Initializer with the producer's weights, of which each output channel is divided.
        rows_axis: Axis of the output channels.
        biases: Initializers of one axis that are divided as well.
        consumers: The layers that read the value.
        channels: Channels of the producer; consumers may read several positions of each, side by side.
        is_shared: Whether others read the value, too: then it stays, and the consumers read a divided copy.
    """

    value: str
    producer: str
    rows: str
    rows_axis: int
    biases: tuple[str, ...]
    consumers: tuple[Layer, ...]
    channels: int
    is_shared: bool = False


def links(anatomy: Anatomy) -> list[Link]:
    """All values of a graph whose channels can be rescaled, in the order of the graph."""
    return list(_Finder(anatomy).links())


class _Finder:
    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        graph = anatomy.model.graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._uses = Counter(name for node in walk.nodes(anatomy.model) for name in node.input)
        self._uses.update(value.name for value in graph.output)
        self._shapes = shapes.infer(anatomy.model)

    def links(self) -> Iterator[Link]:
        consumers: dict[str, list[Layer]] = {}
        for layer in self._anatomy.layers.values():
            consumers.setdefault(layer.activation, []).append(layer)
        for value, layers in consumers.items():
            usable = all(layer.operator in _LAYERS and self._is_own(layer.weight) for layer in layers)
            found = None
            if usable and self._uses[value] == len(layers):
                found = self._behind(value, layers)
            elif usable:
                found = self._shared(value, layers)
            if found is not None:
                yield found

    def _shared(self, value: str, layers: Sequence[Layer]) -> Link | None:
        """The link that ends in what a layer norm gives, where others than layers read it: residual sums."""
        node = self._producers.get(value)
        if node is None or node.op_type != "LayerNormalization":
            return None
        found = self._from_norm(value, node, layers)
        return None if found is None else replace(found, is_shared=True)

    def _behind(self, value: str, layers: Sequence[Layer]) -> Link | None:
        """The link that ends in a value, if what makes it can be divided."""
        node = self._producers.get(value)
        if node is not None and node.op_type == "LayerNormalization":
            return self._from_norm(value, node, layers)
        biases: list[str] = []
        passed: list[str] = []
        while node is not None:
            layer = self._anatomy.layers.get(node.name)
            if layer is not None:
                return self._from_layer(value, layer, biases, layers, passed)
            source = node.input[0] if node.op_type in _HOMOGENEOUS | _POOLS or self._flattens(node) else None
            if node.op_type == "Add" and not biases:
                source = self._before_bias(node, biases)
            if source is None or self._uses[source] != 1:
                return None
            passed.append(node.op_type)
            node = self._producers.get(source)
        return None

    def _flattens(self, node: onnx.NodeProto) -> bool:
        shape = self._shapes.get(node.output[0])
        return node.op_type in _FLATTENING and shape is not None and len(shape.axes) == 2

    def _before_bias(self, node: onnx.NodeProto, biases: list[str]) -> str | None:
        """The product that a sum adds a stored bias to; the bias is noted."""
        named = [name for name in node.input if name in self._stored]
        other = [name for name in node.input if name not in self._stored]
        if len(named) != 1 or len(other) != 1 or not self._is_own(named[0]) or len(self._stored[named[0]].dims) != 1:
            return None
        producer = self._producers.get(other[0])
        if producer is None or producer.op_type != "MatMul":
            return None
        biases.append(named[0])
        return str(other[0])

    def _from_norm(self, value: str, node: onnx.NodeProto, layers: Sequence[Layer]) -> Link | None:
        parts = [name for name in node.input[1:] if name]
        if not all(name in self._stored and self._is_own(name) and len(self._stored[name].dims) == 1 for name in parts):
            return None
        channels = int(self._stored[parts[0]].dims[0])
        if any(reader.channel_axis != -1 or input_channels(reader) != channels for reader in layers):
            return None
        return Link(value, node.name, parts[0], 0, tuple(parts[1:]), tuple(layers), channels)

    def _from_layer(
        self, value: str, layer: Layer, biases: list[str], layers: Sequence[Layer], passed: Collection[str]
    ) -> Link | None:
        is_matrix = layer.operator != "MatMul" or len(layer.shape) == 2
        if layer.operator not in _LAYERS or not is_matrix or not self._is_own(layer.weight):
            return None
        channels = layer.shape[layer.layout.output_axis]
        flattened = not _FLATTENING.isdisjoint(passed)
        for reader in layers:
            if layer.operator == "Conv" and flattened:
                fits = reader.channel_axis == -1 and input_channels(reader) % channels == 0
            else:
                fits = reader.channel_axis == layer.channel_axis and input_channels(reader) == channels
            if not fits or (layer.operator != "Conv" and (flattened or not _POOLS.isdisjoint(passed))):
                return None
        if layer.bias is not None:
            if not self._is_own(layer.bias):
                return None
            biases = [*biases, layer.bias]
        return Link(value, layer.node, layer.weight, layer.layout.output_axis, tuple(biases), tuple(layers), channels)

    def _is_own(self, name: str) -> bool:
        return name in self._stored and self._uses[name] == 1


def input_channels(layer: Layer) -> int:
    """Channels that a layer reads, all groups together."""
    axis = layer.layout.input_axis
    return 0 if axis is None else layer.shape[axis] * layer.groups


def by_input(weight: Array, layer: Layer) -> Array:
    """(inputs, …) the weights that each input channel is multiplied by, as a view where it can be one."""
    if layer.operator != "Conv":
        return np.moveaxis(weight, layer.layout.input_axis or 0, 0)
    outputs, inputs = weight.shape[:2]
    grouped = weight.reshape(layer.groups, outputs // layer.groups, inputs, -1)
    return grouped.transpose(0, 2, 1, 3).reshape(layer.groups * inputs, -1)


def times_input(weight: Array, layer: Layer, factors: Array) -> Array:
    """The weight with all that each input channel is multiplied by times a factor."""
    if layer.operator != "Conv":
        shape = [1] * weight.ndim
        shape[layer.layout.input_axis or 0] = -1
        return weight * factors.reshape(shape)
    outputs, inputs = weight.shape[:2]
    grouped = weight.reshape(layer.groups, outputs // layer.groups, inputs, -1)
    scaled: Array = grouped * factors.reshape(layer.groups, 1, inputs, 1)
    return scaled.reshape(weight.shape)


def power_of_two(factors: Array) -> Array:
    """The powers of two nearest to the factors over their median; 1 for what is no positive number.

    A factor that all channels share serves nothing, and rounding it would part channels that are nearly alike.
    """
    usable = np.isfinite(factors) & (factors > 0)
    if not usable.any():
        return np.ones(factors.shape, np.float32)
    exponents = np.log2(np.where(usable, factors, 1.0))
    exponents = np.where(usable, np.rint(exponents - np.median(exponents[usable])), 0.0)
    result: Array = np.exp2(np.clip(exponents, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)).astype(np.float32)
    return result


def cross_layer_factors(rows: Array, inputs: Array) -> Array:
    """What to divide a layer's output channels by so that they reach as far as the next one's input channels.

    Nagel et al. 2019, equation 11: s = sqrt(r1 / r2), after which both reach sqrt(r1 * r2).

    Args:
        rows: (channels,) largest magnitude of each output channel of the first weight.
        inputs: (channels,) largest magnitude of each input channel of the weights that follow.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return power_of_two(np.sqrt(rows / inputs))


def smoothing_factors(activations: Array, inputs: Array, alpha: float) -> Array:
    """What to divide an activation's channels by: max|x|^alpha / max|w|^(1 - alpha) (Xiao et al. 2022, equation 4).

    Args:
        activations: (channels,) largest magnitudes.
        inputs: (channels,) largest magnitude of the weights that each channel is multiplied by.
        alpha: How much of the difficulty goes to the weights, 0 to 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        factors: Array = activations**alpha / inputs ** (1 - alpha)
    return power_of_two(factors)


class Equalizer:
    """Rescales the channels of a graph's values.

    Args:
        anatomy: The graph; its model is not changed.
        found: Its links, where they are known.
    """

    def __init__(self, anatomy: Anatomy, found: Sequence[Link] | None = None) -> None:
        self._anatomy = anatomy
        self._links = links(anatomy) if found is None else found
        stored = {tensor.name: tensor for tensor in anatomy.model.graph.initializer}
        names = {name for link in self._links for name in (link.rows, *link.biases)}
        names |= {layer.weight for link in self._links for layer in link.consumers}
        self._arrays = {name: numpy_helper.to_array(stored[name]) for name in names}
        self._total = {link.value: np.ones(link.channels, np.float32) for link in self._links}

    def cross_layers(self) -> None:
        """Let neighbouring layers' weights reach equally far, channel by channel, until nothing moves any more."""
        pairs = [link for link in self._links if link.producer in self._anatomy.layers]
        for _ in range(_SWEEPS):
            moved = [
                self._divide(link, cross_layer_factors(self._reach_of_rows(link), self._reach_of_inputs(link)))
                for link in pairs
            ]
            if not any(moved):
                return

    def smooth(self, largest: Mapping[str, Array], alpha: float) -> None:
        """Move what makes activations hard to quantize into the weights that they meet.

        Args:
            largest: Largest magnitude of each channel of what layers read, in the graph as it is now.
            alpha: See `smoothing_factors`.
        """
        for link in self._links:
            if len(largest.get(link.value, ())):
                # Of several positions of a channel that are read side by side, the largest counts.
                reach = largest[link.value].reshape(link.channels, -1).max(1)
                self._divide(link, smoothing_factors(reach, self._reach_of_inputs(link), alpha))

    def _reach_of_rows(self, link: Link) -> Array:
        weight = self._arrays[link.rows]
        reach: Array = np.abs(np.moveaxis(weight, link.rows_axis, 0)).reshape(link.channels, -1).max(1)
        return reach

    def _reach_of_inputs(self, link: Link) -> Array:
        reaches = [
            np.abs(by_input(self._arrays[layer.weight], layer)).reshape(link.channels, -1).max(1)
            for layer in link.consumers
        ]
        result: Array = np.max(reaches, 0)
        return result

    def _divide(self, link: Link, factors: Array) -> bool:
        """Divide a value's channels; whether any was."""
        if np.all(factors == 1):
            return False
        if not link.is_shared:
            rows = self._arrays[link.rows]
            shape = [1] * rows.ndim
            shape[link.rows_axis] = -1
            self._arrays[link.rows] = rows / factors.reshape(shape)
            for name in link.biases:
                self._arrays[name] = self._arrays[name] / factors
        for layer in link.consumers:
            side_by_side = np.repeat(factors, input_channels(layer) // link.channels)
            self._arrays[layer.weight] = times_input(self._arrays[layer.weight], layer, side_by_side)
        self._total[link.value] = self._total[link.value] * factors
        return True

    def model(self) -> onnx.ModelProto:
        """The graph with the rescaled weights."""
        result = onnx.ModelProto()
        result.CopyFrom(self._anatomy.model)
        replace_weights(result, {name: np.ascontiguousarray(one, np.float32) for name, one in self._arrays.items()})
        copies = {link.value: link for link in self._links if link.is_shared and np.any(self._total[link.value] != 1)}
        if copies:
            self._divide_copies(result.graph, copies)
        return result

    def _divide_copies(self, graph: onnx.GraphProto, links: Mapping[str, Link]) -> None:
        """Behind each shared value a product with what its copy is divided by, which the consumers read instead."""
        readers = {layer.node: link.value for link in links.values() for layer in link.consumers}
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            value = readers.get(node.name)
            if value is not None:
                node.input[list(node.input).index(value)] = f"{value}_divided"
            nodes.append(node)
            for name in node.output:
                if name in links:
                    factors = f"{name}_factors"
                    graph.initializer.append(numpy_helper.from_array(1 / self._total[name], factors))
                    nodes.append(helper.make_node("Mul", [name, factors], [f"{name}_divided"], f"{name}_divide"))
        walk.set_nodes(graph, nodes)

    def details(self) -> list[dict[str, object]]:
        """For each value how many channels were rescaled, and by what at least and at most."""
        return [
            {
                "value": name,
                "channels": len(total),
                "rescaled": int(np.count_nonzero(total != 1)),
                "lowest": float(total.min()),
                "highest": float(total.max()),
            }
            for name, total in self._total.items()
        ]
