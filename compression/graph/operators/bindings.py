"""Which initializer belongs to which tensors of the imported module, and how it is laid out there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from compression.graph.operators.scopes import Scope


class Layout(Protocol):
    """How an initializer is cut into the tensors of a layer, and joined again."""

    def split(self, initializer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The layer's tensors, from the initializer's values."""

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The initializer's values, from the layer's tensors in the order of `split`."""


@dataclass(frozen=True)
class AsStored:
    """One tensor, the axes as in the file."""

    def split(self, initializer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (initializer,)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return tensors[0]


@dataclass(frozen=True)
class Transposed:
    """One matrix, (in, out) in the file and (out, in) in the layer."""

    def split(self, initializer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (initializer.t().contiguous(),)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return tensors[0].t().contiguous()


@dataclass(frozen=True)
class Flattened:
    """One vector, in the file with leading axes of length 1."""

    leading: int

    def split(self, initializer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (initializer.reshape(-1),)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return tensors[0].reshape(*[1] * self.leading, -1)


@dataclass(frozen=True)
class Gates:
    """Weights of a recurrent layer: (directions, chunks x hidden, …) in the file, with the gates in ONNX's order.

    The layer has one tensor per direction and group of chunks, with the gates in torch's order. `W` and `R` are one
    group; `B` holds input and recurrent biases, two groups.

    Attributes:
        order: For each of torch's gates, its position among ONNX's.
        groups: 1 for weights, 2 for biases.
    """

    order: tuple[int, ...]
    groups: int = 1

    def split(self, initializer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.cat([group.chunk(len(self.order))[gate] for gate in self.order])
            for direction in initializer
            for group in direction.chunk(self.groups)
        )

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        restored = [
            torch.cat([tensor.chunk(len(self.order))[self.order.index(gate)] for gate in range(len(self.order))])
            for tensor in tensors
        ]
        directions = [torch.cat(restored[at : at + self.groups]) for at in range(0, len(restored), self.groups)]
        return torch.stack(directions)


@dataclass(frozen=True)
class Use:
    """One place of the ONNX graph where an initializer is read.

    Attributes:
        output: Name of the first output of the reading node.
        position: Index among the node's inputs.
        scope: The graph that holds the node.
    """

    output: str
    position: int
    scope: Scope = ()


@dataclass(frozen=True)
class Binding:
    """Values that training may change, in the graph and in the module.

    Attributes:
        initializer: Name in the ONNX graph.
        targets: Names of the module's parameters or buffers, in the order of `layout.split`.
        layout: How the initializer becomes the targets.
        use: The one place that these values belong to, where the file has one tensor for several: exporters store
            equal vectors once, yet every layer has running statistics, and every freshly made layer has scales and
            biases, of its own. None for weights, which stay tied.
        scope: The graph that stores the initializer.
        constants: Places where the module takes the initializer for a constant, which keeps its first value.
    """

    initializer: str
    targets: tuple[str, ...]
    layout: Layout
    use: Use | None = None
    scope: Scope = ()
    constants: tuple[Use, ...] = ()
