"""The smaller graph: weights cut, and every constant and attribute that spells out a shape brought in line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.graph import walk
from compression.graph.skeleton import without_weights
from compression.graph.weights import Array
from compression.pruning.channels.engine import Engine, attribute
from compression.pruning.channels.folding import Folding
from compression.pruning.channels.groups import Mask, Plan
from compression.pruning.channels.identities import Labels
from compression.pruning.channels.patching import CannotPatch, Patcher


class Stuck(Exception):
    """A node cannot be brought in line with the shapes wanted."""

    def __init__(self, node: onnx.NodeProto) -> None:
        super().__init__(walk.display_name(node))
        self.node = node


class Rewriter:
    """One smaller version of an analysed graph.

    Args:
        engine: The graph with its labels.
        plan: What depends on what.
        removed: Units that go.
    """

    def __init__(self, engine: Engine, plan: Plan, removed: Labels) -> None:
        self._engine, self._plan, self._removed = engine, plan, removed
        self._masks = plan.kept(removed)
        self._grouped = {layer.node.output[0]: layer for layer in engine.grouped}
        self._model = without_weights(engine.model)
        # Weights enter the new graph once, at the end: what a protobuf message lets go is freed with the whole only.
        weights = [self._cut(tensor) for tensor in engine.model.graph.initializer]
        self._weights = weights
        self._folding = Folding(self._model)
        for tensor in weights:
            self._folding.put(tensor)
        self._patcher = Patcher(
            self._folding,
            engine.made_by,
            {tensor.name: tensor for tensor in weights},
            lambda name: name in engine.settled,
        )

    def run(self) -> onnx.ModelProto:
        """The smaller model.

        Raises:
            Stuck: for the first node whose result would not have the shape that follows from the labels.
        """
        nodes: list[onnx.NodeProto] = []
        for original in self._engine.model.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            fix = _FIXES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if fix is not None:
                try:
                    fix(self, node)
                except (CannotPatch, IndexError):
                    raise Stuck(original) from None
            nodes += self._patcher.new_nodes
            self._patcher.new_nodes.clear()
            self._folding.visit(node)
            self._check(original)
            nodes.append(node)
        return self._assembled(nodes)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a value in the smaller graph as it follows from its labels."""
        shape = self._engine.folding.shape(name)
        if shape is None or name not in self._plan.along:
            return shape
        axis, line = self._plan.along[name]
        return (*shape[:axis], int(np.count_nonzero(self._masks[line])), *shape[axis + 1 :])

    def _check(self, original: onnx.NodeProto) -> None:
        for name in original.output:
            wanted = self.shape(name) if name else None
            if wanted is not None and self._folding.shape(name) != wanted:
                raise Stuck(original)

    def _cut(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        kept = {axis: self._masks[line] for axis, line in self._plan.weights.get(tensor.name, {}).items()}
        if all(mask.all() for mask in kept.values()):
            return tensor
        values = numpy_helper.to_array(tensor)
        for axis, mask in kept.items():
            values = values.compress(mask, axis)
        return numpy_helper.from_array(np.ascontiguousarray(values), tensor.name)

    def _assembled(self, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        graph, before = self._model.graph, self._engine.model.graph
        outputs = {value.name for value in graph.output}
        live = _live(before.node, outputs)
        still = _live(nodes, outputs)
        graph.ClearField("node")
        # What nobody used before stays unused; what only served constants that were replaced goes.
        graph.node.extend(n for n in nodes if any(name in still or (name and name not in live) for name in n.output))
        used = still.union(*(node.input for node in graph.node))
        weights = [*self._weights, *self._patcher.new_constants]
        kept = [tensor for tensor in weights if tensor.name in used or self._was_unused(tensor.name, live)]
        graph.initializer.extend(kept)
        stored = {tensor.name: tensor for tensor in kept}
        inputs = [value for value in graph.input if value.name not in self._engine.constants or value.name in stored]
        graph.ClearField("input")
        graph.input.extend(inputs)
        for value in graph.input:
            if value.name in stored:
                value.type.CopyFrom(
                    helper.make_tensor_type_proto(stored[value.name].data_type, list(stored[value.name].dims))
                )
        self._declare_shapes()
        return self._model

    def _was_unused(self, name: str, live: set[str]) -> bool:
        return name in self._engine.constants and name not in live

    def _declare_shapes(self) -> None:
        """Bring declared shapes in line; exporters declare those of stored tensors too."""
        graph = self._model.graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        present = {name for node in graph.node for name in node.output} | stored.keys()
        for index in reversed(range(len(graph.value_info))):
            value = graph.value_info[index]
            if value.name not in present:
                del graph.value_info[index]
            elif value.name in stored:
                tensor = stored[value.name]
                value.type.CopyFrom(helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)))
            elif value.name in self._plan.along:
                axis, line = self._plan.along[value.name]
                axes = value.type.tensor_type.shape.dim
                if axis < len(axes) and axes[axis].HasField("dim_value"):
                    axes[axis].dim_value = int(np.count_nonzero(self._masks[line]))

    # What each operator spells out.

    def mask(self, name: str, axis: int) -> Mask | None:
        """Which entries of a value along an axis are left; None where all are."""
        found = self._plan.along.get(name)
        if found is None or found[0] != axis or self._masks[found[1]].all():
            return None
        return self._masks[found[1]]

    def old(self, name: str) -> Array:
        """What a value was before."""
        value = self._engine.folding.values.get(name)
        if value is None:
            raise CannotPatch
        return value

    def target(self, node: onnx.NodeProto, position: int) -> None:
        """An input that holds the shape of the result, where -1 and 0 stand for lengths that follow from the input."""
        wanted = self.shape(node.output[0])
        if wanted is None or len(node.input) <= position or not node.input[position]:
            return
        old = self.old(node.input[position])
        open_lengths = node.op_type == "Reshape"
        keep = (old < 0) | ((old == 0) & (not attribute(node, "allowzero", 0))) if open_lengths else old < 0
        if node.op_type == "Expand":
            # A target may be shorter than the result, and 1 where the input is longer.
            short = np.array(wanted[len(wanted) - old.size :], old.dtype)
            full = np.where(old == 1, old, short)
        else:
            full = np.where(keep, old, np.array(wanted, old.dtype))
        node.input[position] = self._patcher.patched(node.input[position], full)

    def group_count(self, node: onnx.NodeProto, name: str) -> None:
        """Convolutions and norms that lost whole groups."""
        layer = self._grouped.get(node.output[0])
        if layer is not None and layer.by_group:
            rows = self._engine.ids.find(layer.inputs[:, 0])
            _set_attribute(node, name, int(np.count_nonzero(~np.isin(rows, self._removed))))

    def hidden_size(self, node: onnx.NodeProto) -> None:
        _set_attribute(node, "hidden_size", int(self._folding.shape(node.input[2])[2]))  # type: ignore[index]

    def split_sizes(self, node: onnx.NodeProto) -> None:
        shapes = [self.shape(name) for name in node.output]
        rank = len(self._engine.shape(node.input[0]))
        axis = attribute(node, "axis", 0) % rank
        if self.mask(node.input[0], axis) is None or any(shape is None for shape in shapes):
            return
        sizes = np.array([shape[axis] for shape in shapes if shape is not None], np.int64)
        if len(node.input) > 1 and node.input[1]:
            node.input[1] = self._patcher.patched(node.input[1], sizes)
        elif attribute(node, "split", None) is not None or self._folding.opset < 13:
            _set_attribute(node, "split", sizes.tolist())
        elif len(set(sizes.tolist())) > 1:
            kept = [one for one in node.attribute if one.name != "num_outputs"]
            node.ClearField("attribute")
            node.attribute.extend(kept)
            del node.input[1:]
            node.input.append(self._patcher.constant(f"{node.output[0]}.split", sizes))

    def bounds(self, node: onnx.NodeProto) -> None:
        if len(node.input) < 3:
            return
        shape = self._engine.shape(node.input[0])
        starts, ends = self.old(node.input[1]).copy(), self.old(node.input[2]).copy()
        axes = self.old(node.input[3]).tolist() if len(node.input) > 3 and node.input[3] else range(len(starts))
        changed = False
        for index, axis in enumerate(axes):
            mask = self.mask(node.input[0], axis % len(shape))
            if mask is not None:
                start, stop, _ = slice(int(starts[index]), int(ends[index])).indices(len(mask))
                starts[index], ends[index] = np.count_nonzero(mask[:start]), np.count_nonzero(mask[:stop])
                changed = True
        if changed:
            node.input[1] = self._patcher.patched(node.input[1], starts)
            node.input[2] = self._patcher.patched(node.input[2], ends)

    def places(self, node: onnx.NodeProto) -> None:
        shape = self._engine.shape(node.input[0])
        mask = self.mask(node.input[0], attribute(node, "axis", 0) % len(shape))
        if mask is None:
            return
        index = self._engine.folding.values.get(node.input[1])
        if index is None and node.input[1] in self._engine.constants:
            index = numpy_helper.to_array(self._engine.constants[node.input[1]])
        if index is None or index.ndim > 1:
            raise CannotPatch
        index = index % len(mask)
        renumbered = (np.cumsum(mask) - 1)[index]
        new = renumbered[mask[index]] if index.ndim else renumbered
        node.input[1] = self._patcher.patched(node.input[1], new.astype(index.dtype))


def _set_attribute(node: onnx.NodeProto, name: str, value: int | list[int]) -> None:
    kept = [one for one in node.attribute if one.name != name]
    node.ClearField("attribute")
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _live(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> set[str]:
    """Names that the outputs of the graph depend on."""
    live = set(outputs)
    for node in reversed(nodes):
        if any(name in live for name in node.output):
            live.update(node.input)
            for graph in walk.subgraphs(node):
                live |= _live(graph.node, {value.name for value in graph.output})
    return live


_FIXES: dict[str, Callable[[Rewriter, onnx.NodeProto], None]] = {
    "Reshape": lambda rewriter, node: rewriter.target(node, 1),
    "Expand": lambda rewriter, node: rewriter.target(node, 1),
    "ConstantOfShape": lambda rewriter, node: rewriter.target(node, 0),
    "Resize": lambda rewriter, node: rewriter.target(node, 3),
    "Conv": lambda rewriter, node: rewriter.group_count(node, "group"),
    "GroupNormalization": lambda rewriter, node: rewriter.group_count(node, "num_groups"),
    "RNN": Rewriter.hidden_size,
    "GRU": Rewriter.hidden_size,
    "LSTM": Rewriter.hidden_size,
    "Split": Rewriter.split_sizes,
    "Slice": Rewriter.bounds,
    "Gather": Rewriter.places,
}
