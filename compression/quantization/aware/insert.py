"""Fake quantizers in the place of the pairs that a module was imported with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from compression.quantization.aware.fake_quant import activation_grid, weight_grid
from compression.quantization.aware.pairs import dequantized
from compression.quantization.aware.placement import Plan
from compression.quantization.aware.quantizers import ActivationQuantizer, BiasQuantizer, WeightQuantizer

# Under this name the imported module owns its quantizers; no model has a layer of that name.
_FOLDER = "levity_fake_quantizers"


@dataclass(frozen=True)
class Quantizers:
    """The fake quantizers of a module.

    Attributes:
        activations: By the value that they quantize.
        weights: By initializer.
        biases: By the first output of their layers.
        tensors: The module's tensor of each weight, by initializer, and of each bias, by the layer's first output.
    """

    activations: dict[str, ActivationQuantizer]
    weights: dict[str, WeightQuantizer]
    biases: dict[str, BiasQuantizer]
    tensors: dict[str, torch.Tensor]

    def modules(self) -> list[nn.Module]:
        """Those that have values of their own."""
        return [*self.activations.values(), *self.weights.values()]


def insert(module: fx.GraphModule, plan: Plan, *, learned: bool) -> Quantizers:
    """Replace the pairs of an imported module by fake quantizers, in place.

    Args:
        module: Imported from the graph of `with_pairs`.
        plan: The plan that the pairs were written by.
        learned: Learn step sizes instead of observing ranges.
    """
    pairs = _pairs(module)
    folder = nn.ModuleList()
    module.add_submodule(_FOLDER, folder)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def own(quantizer: nn.Module) -> str:
        folder.append(quantizer.to(device).train(module.training))
        return f"{_FOLDER}.{len(folder) - 1}"

    activations: dict[str, ActivationQuantizer] = {}
    for name, activation in plan.activations.items():
        pair = _found(pairs, (dequantized(name), name))
        if activation.is_own:
            activations[name] = ActivationQuantizer(activation_grid(activation.bits), learned=learned)
            pair.replace(module, own(activations[name]))
        else:
            # Moving values leaves them on their grid.
            pair.remove()
    weights: dict[str, WeightQuantizer] = {}
    tensors: dict[str, torch.Tensor] = {}
    sources: dict[str, fx.Node] = {}
    for name, weight in plan.weights.items():
        pair = _found(pairs, (dequantized(name),))
        weights[name] = WeightQuantizer(weight_grid(weight.bits), weight.axis, learned=learned)
        sources[name], tensors[name] = pair.source, _tensor(module, pair.source)
        pair.replace(module, own(weights[name]))
    biases: dict[str, BiasQuantizer] = {}
    for node, bias in plan.biases.items():
        pair = _found(pairs, (dequantized(bias.prefix),))
        biases[node] = BiasQuantizer(activations[bias.owner], weights[bias.weight])
        tensors[node] = _tensor(module, pair.source)
        pair.replace(module, own(biases[node]), sources[bias.weight])
    _tidy(module)
    return Quantizers(activations, weights, biases, tensors)


def calibrate(
    module: nn.Module, quantizers: Quantizers, batches: Iterable[Sequence[torch.Tensor]], check: Callable[[], None]
) -> None:
    """Run batches through the float module and start all quantizers from what they saw.

    Args:
        module: In evaluation mode; its quantizers are watching.
        quantizers: Those of the module.
        batches: Inputs of the module.
        check: Called before each batch; may raise.
    """
    with torch.no_grad():
        for inputs in batches:
            check()
            module(*inputs)
        for activation in quantizers.activations.values():
            activation.start()
        for name, weight in quantizers.weights.items():
            weight.start(quantizers.tensors[name])


@dataclass(frozen=True)
class _Pair:
    """The two fx nodes of one pair, and what they take."""

    source: fx.Node
    quantize: fx.Node
    dequantize: fx.Node

    def replace(self, module: fx.GraphModule, target: str, *more: fx.Node) -> None:
        with module.graph.inserting_before(self.dequantize):
            node = module.graph.call_module(target, (self.source, *more))
        node.meta.update(self.dequantize.meta)
        self._put(node)

    def remove(self) -> None:
        self._put(self.source)

    def _put(self, node: fx.Node) -> None:
        graph = self.dequantize.graph
        self.dequantize.replace_all_uses_with(node)
        graph.erase_node(self.dequantize)
        if not self.quantize.users:
            graph.erase_node(self.quantize)


def _pairs(module: fx.GraphModule) -> dict[str, _Pair]:
    """All pairs of a module by the name of what they give out."""
    found = {}
    for node in module.graph.nodes:
        origin = node.meta.get("onnx")
        if origin is None or origin.operator != "DequantizeLinear" or node.op != "call_function":
            continue
        quantize = node.args[0]
        if isinstance(quantize, fx.Node) and quantize.args and isinstance(quantize.args[0], fx.Node):
            found[origin.outputs[0]] = _Pair(quantize.args[0], quantize, node)
    return found


def _found(pairs: dict[str, _Pair], names: Sequence[str]) -> _Pair:
    return next(pairs[name] for name in names if name in pairs)


def _tensor(module: fx.GraphModule, source: fx.Node) -> torch.Tensor:
    """The parameter or buffer that a node reads."""
    if source.op != "get_attr":
        msg = f"'{source.name}' is computed"
        raise ValueError(msg)
    owner: object = module
    for part in str(source.target).split("."):
        owner = getattr(owner, part)
    if not isinstance(owner, torch.Tensor):
        msg = f"'{source.target}' is no tensor"
        raise TypeError(msg)
    return owner


def _tidy(module: fx.GraphModule) -> None:
    """Drop the scales and zero points of the pairs that are gone."""
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            *folders, last = str(node.target).split(".")
            owner = module.get_submodule(".".join(folders))
            if last in owner._buffers:  # noqa: SLF001 - the only way to tell a buffer
                delattr(owner, last)
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
