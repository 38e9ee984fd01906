"""One ONNX node on its way into the fx graph: what an operator's import function sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import onnx
import torch
from onnx import helper
from torch import fx, nn

from compression.graph.operators.bindings import AsStored, Layout
from compression.graph.operators.dtypes import LEARNABLE, UNSIGNED, tensor_from_proto, torch_dtype
from compression.graph.operators.weight_store import StoredWeight

if TYPE_CHECKING:
    from compression.graph.operators.builder import GraphBuilder

# Known at import, or computed by the module.
Value: TypeAlias = torch.Tensor | fx.Node

_AS_STORED = AsStored()


class Rejected(Exception):
    """An operator is used in a way that cannot be imported."""


def to_ints(tensor: torch.Tensor) -> list[int]:
    """The elements of a tensor of integers as Python integers; a scalar gives a list of one."""
    return [int(element) for element in tensor.reshape(-1).tolist()]


def to_number(tensor: torch.Tensor) -> Any:
    """The only element of a tensor as a Python number."""
    return tensor.reshape(()).item()


class OperatorCall:
    """A node with its attributes and inputs.

    `call` evaluates at once when nothing in its arguments depends on the module's inputs or weights, so that an
    import function written once both folds constants and emits graph nodes.

    Attributes:
        node: The ONNX node.
        opset: Version of the operator set of the node's domain.
        builder: The graph under construction.
    """

    def __init__(self, node: onnx.NodeProto, opset: int, builder: GraphBuilder) -> None:
        self.node = node
        self.opset = opset
        self.builder = builder
        self._attributes = {attribute.name: attribute for attribute in node.attribute}
        self._as_constant: set[int] = set()
        self._as_value: set[int] = set()

    def reject(self, reason: str) -> NoReturn:
        """Say that this use of the operator is not supported: `attribute 'x' = 3`, `a weight that is computed`."""
        raise Rejected(reason)

    # Attributes

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value as a Python object: strings decoded, lists for repeated ones."""
        found = self._attributes.get(name)
        if found is None:
            return default
        value = helper.get_attribute_value(found)
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, (str, int, float)):
            return value
        if found.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            return list(value)
        if found.type == onnx.AttributeProto.STRINGS:
            return [text.decode() for text in value]
        return value

    # Inputs

    def has(self, position: int) -> bool:
        """Whether the optional input is given."""
        return position < len(self.node.input) and self.node.input[position] != ""

    def tensor(self, position: int) -> Value:
        """A required input. Learnable initializers come as parameters."""
        self._as_value.add(position)
        return self.builder.read(self.node, position)

    def optional(self, position: int) -> Value | None:
        return self.tensor(position) if self.has(position) else None

    def tensors(self) -> list[Value]:
        """All inputs of a variadic operator."""
        return [self.tensor(position) for position in range(len(self.node.input))]

    def constant(self, position: int) -> torch.Tensor | None:
        """An input's value where it is known at import, stored weights included; None otherwise."""
        if not self.has(position):
            return None
        self._as_constant.add(position)
        return self.builder.constant(self.node.input[position])

    def taken_as_constants(self) -> set[int]:
        """Inputs whose values were asked for and that were not then read as tensors."""
        return self._as_constant - self._as_value

    def operand(self, position: int) -> Any:
        """An input of an elementwise operator: a constant scalar as a Python number, all else as a tensor."""
        value = self.tensor(position)
        if isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype not in UNSIGNED:
            return value.item()
        return value

    def ints(self, position: int) -> Any:
        """An input of integers as a list: known at import, or a node whose value is a list; None where not given."""
        if not self.has(position):
            return None
        constant = self.constant(position)
        if constant is not None:
            return to_ints(constant)
        return self.python(to_ints, self.tensor(position))

    def number(self, position: int, default: Any = None) -> Any:
        """An input of one element as a Python number, or a node whose value is one."""
        if not self.has(position):
            return default
        constant = self.constant(position)
        if constant is not None:
            return to_number(constant)
        return self.python(to_number, self.tensor(position))

    def axes(self, position: int) -> Any:
        """Axes from the input where newer versions of the operator have them, else from the attribute."""
        return self.ints(position) if self.has(position) else self.attribute("axes")

    def element_type(self, position: int) -> int | None:
        """ONNX element type of an input, None where it could not be inferred."""
        return self.builder.element_type(self.node.input[position]) if self.has(position) else None

    def is_float(self, position: int) -> bool:
        """Whether an input is known to be of a float type that torch computes in."""
        element_type = self.element_type(position)
        return element_type is not None and torch_dtype(element_type) in LEARNABLE

    def rank(self, position: int) -> int | None:
        """Number of axes of an input, None where it could not be inferred."""
        return self.builder.rank(self.node.input[position]) if self.has(position) else None

    def shape(self, position: int) -> list[int | None] | None:
        """Lengths of an input's axes, None for those that are not fixed; None where nothing could be inferred."""
        return self.builder.shape(self.node.input[position]) if self.has(position) else None

    # Outputs

    @property
    def outputs(self) -> int:
        """How many outputs the node declares, trailing ones that nobody names not counted."""
        count = len(self.node.output)
        while count and not self.node.output[count - 1]:
            count -= 1
        return count

    def wants(self, position: int) -> bool:
        """Whether an optional output is asked for."""
        return position < len(self.node.output) and self.node.output[position] != ""

    # Emission

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Apply a function: now, when all its arguments are known, else as a node of the fx graph."""
        return self.builder.emitter.call(function, args, kwargs)

    def python(self, function: Callable[..., Any], *args: Any) -> Any:
        """Like `call`, for a function that returns Python numbers or lists rather than a tensor."""
        return self.builder.emitter.call(function, args, {}, python=True)

    def item(self, values: Any, position: int) -> Any:
        """One of several results of `call`."""
        return values[position] if not isinstance(values, fx.Node) else self.builder.emitter.item(values, position)

    def from_shape(self, function: Callable[..., Any], x: Value, *args: Any) -> Any:
        """Apply a function that looks at the shape of `x` alone and gives small integers, which stay on the CPU."""
        return self.builder.emitter.from_shape(function, x, *args) if isinstance(x, fx.Node) else function(x, *args)

    # Layers

    def stored(self, position: int, layout: Layout = _AS_STORED) -> StoredWeight | None:
        """The initializer at an input, if it is a weight that a layer may hold in this layout; None otherwise."""
        weight = self.builder.weight(self.node, position) if self.has(position) else None
        return weight if weight is not None and self.builder.weights.fits(weight, layout) else None

    def parameters(self, weight: StoredWeight, layout: Layout = _AS_STORED) -> tuple[nn.Parameter, ...]:
        """The parameters that hold an initializer that `stored` gave."""
        if weight.use is not None:
            self._as_value.add(weight.use.position)
        return self.builder.weights.parameters(weight, layout)

    def statistics(self, weight: StoredWeight) -> torch.Tensor:
        """An initializer that `stored` gave as a buffer of this layer alone."""
        return self.builder.weights.statistics(weight)

    def layer(self, module: nn.Module, *args: Any, named_after: Sequence[StoredWeight | None] = ()) -> Any:
        """Apply a layer that the module will own.

        Args:
            module: The layer.
            *args: Its arguments.
            named_after: Initializers that it holds: the layer's path is what precedes `.weight` or `.bias` in the
                first of them that has such a name, else the node's name.
        """
        return self.builder.emitter.layer(module, args, [weight.name for weight in named_after if weight])

    def tensor_attribute(self, name: str) -> torch.Tensor | None:
        found = self._attributes.get(name)
        return None if found is None else tensor_from_proto(found.t)

    def nested(self, name: str) -> GraphBuilder:
        """A builder for the graph in an attribute."""
        return self.builder.nested(self.node, name)

    def captured(self, names: Sequence[str]) -> list[Value]:
        """Values of this graph that a nested one reads."""
        return [self.builder.value(name) for name in names]

    def graph_attribute(self, name: str) -> onnx.GraphProto:
        graph: onnx.GraphProto = self._attributes[name].g
        return graph
