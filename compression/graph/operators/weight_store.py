"""Initializers as module parameters, each made once, so that shared ones stay shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import torch
from torch import nn

from compression.graph.operators.bindings import AsStored, Binding, Layout, Use
from compression.graph.operators.dtypes import LEARNABLE, tensor_from_proto
from compression.graph.operators.scopes import Scope

_AS_STORED = AsStored()


@dataclass(frozen=True)
class StoredWeight:
    """An initializer, as one node reads it.

    Attributes:
        name: As the node has it: the initializer's, or that of an Identity behind it.
        initializer: Name of the stored tensor.
        scope: The graph that stores it.
        values: The stored values.
        use: Where it is read; None as the output of a graph.
    """

    name: str
    initializer: str
    scope: Scope
    values: torch.Tensor = field(compare=False)
    use: Use | None = None


@dataclass
class _Entry:
    weight: StoredWeight
    layout: Layout
    tensors: tuple[torch.Tensor, ...]
    own: bool


def is_learnable(tensor: torch.Tensor) -> bool:
    """Whether a stored tensor is a weight rather than a constant of the computation.

    Scalars are constants: exporters store epsilons, scale factors and exponents as such. So are tensors with
    infinities, which are masks.
    """
    return tensor.dtype in LEARNABLE and tensor.dim() > 0 and bool(torch.isfinite(tensor).all())


def is_merged(tensor: torch.Tensor) -> bool:
    """Whether a tensor that several nodes share is likely several layers' fresh vectors, which exporters merge.

    Vectors of one value, such as zeros and ones, are what scales and biases start as; layers that are tied on purpose
    share matrices, or vectors that training has made uneven.
    """
    return max(tensor.shape, default=0) == tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())


class WeightStore:
    """Parameters of the module under construction.

    Args:
        uses: How many times nodes of the whole model read each initializer. One that is read more than once keeps
            the layout of the file, so that all its readers can share it, unless `is_merged`.
        places: The uses that exist in the file; others are in definitions of operators that were written out.
    """

    def __init__(self, uses: Counter[str], places: frozenset[Use]) -> None:
        self._uses = uses
        self._places = places
        self._weights: dict[tuple[Scope, str, Use | None], _Entry] = {}
        self._statistics: list[_Entry] = []
        self._constants: dict[tuple[Scope, str], dict[Use, None]] = {}
        self._loaded: dict[tuple[Scope, str], torch.Tensor] = {}
        self._names: dict[int, str] = {}

    def load(self, scope: Scope, proto: onnx.TensorProto) -> torch.Tensor:
        """A stored tensor's values; the same object every time.

        Raises:
            TypeError: for strings.
        """
        key = scope, proto.name
        if key not in self._loaded:
            self._loaded[key] = tensor_from_proto(proto)
            self._names[id(self._loaded[key])] = proto.name
        return self._loaded[key]

    def name_of(self, tensor: torch.Tensor) -> str:
        """Name of the initializer that `load` made this of."""
        return self._names.get(id(tensor), "constant")

    def fits(self, weight: StoredWeight, layout: Layout) -> bool:
        """Whether `parameters` may be asked for this layout."""
        key = self._key(weight)
        if key in self._weights:
            return self._weights[key].layout == layout
        return layout == _AS_STORED or self._uses[weight.initializer] == 1 or key[2] is not None

    def parameters(self, weight: StoredWeight, layout: Layout = _AS_STORED) -> tuple[nn.Parameter, ...]:
        """The parameters that hold an initializer; the same objects for every reader of it, unless `is_merged`."""
        key = self._key(weight)
        entry = self._weights.get(key)
        if entry is None:
            own = key[2] is not None
            values = weight.values.clone() if own else weight.values
            tensors = tuple(nn.Parameter(tensor) for tensor in layout.split(values))
            entry = self._weights[key] = _Entry(weight, layout, tensors, own)
        if entry.layout != layout:
            msg = f"'{weight.initializer}' is held in another layout: ask `fits` first"
            raise ValueError(msg)
        return entry.tensors  # type: ignore[return-value, unused-ignore]  # made as parameters just above

    def statistics(self, weight: StoredWeight) -> torch.Tensor:
        """A buffer of running statistics for one layer, even where the file shares the initializer."""
        buffer = weight.values.clone()
        self._statistics.append(_Entry(weight, _AS_STORED, (buffer,), own=True))
        return buffer

    def keep_constant(self, weight: StoredWeight) -> None:
        """Note that the module takes the initializer for a constant where it is read here."""
        if weight.use is not None:
            self._constants.setdefault((weight.scope, weight.initializer), {})[weight.use] = None

    def bindings(self, module: nn.Module) -> tuple[Binding, ...]:
        """What of all that was handed out is in the finished module, under its names there."""
        names = _names(module)
        return tuple(
            Binding(
                entry.weight.initializer,
                tuple(names[id(tensor)] for tensor in entry.tensors),
                entry.layout,
                entry.weight.use if entry.own else None,
                entry.weight.scope,
                () if entry.own else tuple(self._constants.get((entry.weight.scope, entry.weight.initializer), ())),
            )
            for entry in (*self._weights.values(), *self._statistics)
            if all(id(tensor) in names for tensor in entry.tensors)
        )

    def _key(self, weight: StoredWeight) -> tuple[Scope, str, Use | None]:
        merged = self._uses[weight.initializer] > 1 and weight.use in self._places and is_merged(weight.values)
        return weight.scope, weight.initializer, weight.use if merged else None


def _names(module: nn.Module) -> Mapping[int, str]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {id(tensor): name for name, tensor in named}
