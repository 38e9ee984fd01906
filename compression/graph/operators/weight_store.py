"""Initializers as module parameters, each made once, so that shared ones stay shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from compression.graph.operators.bindings import AsStored, Binding, Layout, Use
from compression.graph.operators.dtypes import LEARNABLE

_AS_STORED = AsStored()


@dataclass
class _Entry:
    initializer: str
    layout: Layout
    tensors: tuple[torch.Tensor, ...]
    use: Use | None = None


def is_learnable(tensor: torch.Tensor) -> bool:
    """Whether a stored tensor is a weight rather than a constant of the computation.

    Scalars are constants: exporters store epsilons, scale factors and exponents as such. So are tensors with
    infinities, which are masks.
    """
    return tensor.dtype in LEARNABLE and tensor.dim() > 0 and bool(torch.isfinite(tensor).all())


class WeightStore:
    """Parameters of the module under construction.

    Args:
        uses: How many times nodes of the whole model read each initializer. One that is read more than once keeps
            the layout of the file, so that all its readers can share it.
    """

    def __init__(self, uses: Counter[str]) -> None:
        self._uses = uses
        self._weights: dict[str, _Entry] = {}
        self._statistics: list[_Entry] = []

    def fits(self, initializer: str, layout: Layout) -> bool:
        """Whether `parameters` may be asked for this layout."""
        return layout == _AS_STORED or (self._uses[initializer] == 1 and initializer not in self._weights)

    def parameters(
        self, initializer: str, values: torch.Tensor, layout: Layout = _AS_STORED
    ) -> tuple[nn.Parameter, ...]:
        """The parameters that hold an initializer; the same objects for every caller."""
        entry = self._weights.get(initializer)
        if entry is None:
            tensors = tuple(nn.Parameter(tensor) for tensor in layout.split(values))
            entry = self._weights[initializer] = _Entry(initializer, layout, tensors)
        return entry.tensors  # type: ignore[return-value, unused-ignore]  # made as parameters just above

    def statistics(self, initializer: str, values: torch.Tensor, use: Use) -> torch.Tensor:
        """A buffer of running statistics for one layer, even where the file shares the initializer."""
        buffer = values.clone()
        self._statistics.append(_Entry(initializer, _AS_STORED, (buffer,), use))
        return buffer

    def bindings(self, module: nn.Module) -> tuple[Binding, ...]:
        """What of all that was handed out is in the finished module, under its names there."""
        names = _names(module)
        return tuple(
            Binding(entry.initializer, tuple(names[id(tensor)] for tensor in entry.tensors), entry.layout, entry.use)
            for entry in (*self._weights.values(), *self._statistics)
            if all(id(tensor) in names for tensor in entry.tensors)
        )


def _names(module: nn.Module) -> Mapping[int, str]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {id(tensor): name for name, tensor in named}
