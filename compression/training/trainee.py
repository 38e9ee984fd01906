"""An ONNX model on its way through training: imported, trained, written back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import onnx
import torch
from torch import fx, nn

from compression.errors import StepFailed
from compression.graph.operators.bindings import Binding, Layout
from compression.graph.to_torch import to_torch
from compression.graph.weights import Weight, find_weights, select
from compression.graph.write_back import write_back

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_PROBABILITIES = frozenset({"Softmax"})


@dataclass(frozen=True)
class TrainableWeight:
    """A weight of the graph and the parameters that hold it.

    Attributes:
        weight: What it is in the graph.
        parameters: One, or the parts into which the importer has cut it (recurrent layers).
        layout: How the parts make up the stored tensor.
    """

    weight: Weight
    parameters: tuple[nn.Parameter, ...]
    layout: Layout

    @torch.no_grad()
    def values(self) -> torch.Tensor:
        """A copy of the weight as the graph stores it, in `weight.shape`, on the CPU."""
        return self.layout.join([parameter.detach() for parameter in self.parameters]).cpu().clone()

    def split(self, stored: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A tensor of `weight.shape`, such as a mask, cut and laid out like the parameters, on their device."""
        return tuple(part.to(self.parameters[0].device) for part in self.layout.split(stored))

    @torch.no_grad()
    def gradient(self) -> torch.Tensor | None:
        """The gradient as the graph stores the weight, on the CPU; None where there is none yet."""
        gradients = [parameter.grad for parameter in self.parameters]
        present = [gradient for gradient in gradients if gradient is not None]
        return self.layout.join(present).cpu().clone() if len(present) == len(gradients) else None


class Trainee:
    """A model as a torch module whose values can be written back into its graph.

    Args:
        model: A complete float model.
        device: `cpu` or `cuda`.

    Attributes:
        module: Takes the graph's inputs in order and gives its outputs.

    Raises:
        UnsupportedOperator: the model cannot be imported.
    """

    def __init__(self, model: onnx.ModelProto, device: str = "cpu") -> None:
        self._model = model
        self.module: fx.GraphModule = to_torch(model, device=device)

    @property
    def input_names(self) -> tuple[str, ...]:
        return cast("tuple[str, ...]", self.module.input_names)

    @property
    def gives_probabilities(self) -> bool:
        """Whether the first output comes straight out of a softmax."""
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        first = output.args[0]
        while isinstance(first, (tuple, list)):
            first = first[0]
        origin = first.meta.get("onnx") if isinstance(first, fx.Node) else None
        return origin is not None and origin.operator in _PROBABILITIES

    def weights(
        self, include: Iterable[str] = ("*",), exclude: Iterable[str] = (), *, embeddings: bool = False
    ) -> list[TrainableWeight]:
        """The weights that layers multiply by and that the patterns select; with `embeddings`, lookup tables too.

        Raises:
            StepFailed: `unknown_name` or `no_weights`.
        """
        found = [weight for weight in find_weights(self._model) if embeddings or not weight.is_embedding]
        chosen = select(found, include, exclude)
        trainable = self.parameters_of(chosen)
        if not trainable:
            raise StepFailed("no_weights", f"None of the selected weights can be trained, such as '{chosen[0].name}'.")
        return trainable

    def parameters_of(self, weights: Iterable[Weight]) -> list[TrainableWeight]:
        """Weights of the main graph with the parameters that hold them; those that are constants are left out."""
        bindings = cast("tuple[Binding, ...]", self.module.bindings)
        # The main graph has no scope.
        bound = {binding.initializer: binding for binding in bindings if binding.use is None and not binding.scope}
        parameters = dict(self.module.named_parameters())
        return [
            TrainableWeight(
                weight,
                tuple(parameters[target] for target in bound[weight.name].targets),
                bound[weight.name].layout,
            )
            for weight in weights
            if weight.name in bound
        ]

    def written_back(self) -> onnx.ModelProto:
        """The model with the module's values; the one that came in is not changed."""
        return write_back(self.module, self._model)


def batch_norms(module: nn.Module) -> list[_Norm]:
    """The batch norms inside a module."""
    return [layer for layer in module.modules() if isinstance(layer, _Norm)]


@torch.no_grad()
def reestimate_batch_norms(module: nn.Module, batches: Iterable[Sequence[torch.Tensor]]) -> None:
    """Replace running statistics by the plain mean over some batches, with all parameters as they are.

    The rest of the module works as in inference: noise of dropout would widen the variances.

    Args:
        module: Its batch norms are those of `torch.nn`.
        batches: Inputs of the module.
    """
    norms = batch_norms(module)
    momenta = [layer.momentum for layer in norms]
    was_training = module.training
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    for inputs in batches:
        module(*inputs)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    module.train(was_training)
