"""Layers that make channels out of channels: convolutions, matrix products, recurrent layers, embeddings."""

from __future__ import annotations

import numpy as np
import onnx

from compression.pruning.channels import label_arrays
from compression.pruning.channels.engine import Engine, GroupedLayer, Rule, Unknown, attribute
from compression.pruning.channels.identities import Labels


def convolution(engine: Engine, node: onnx.NodeProto) -> None:
    """Conv: weight (out, in / groups, *kernel)."""
    found = engine.weight(node.input[1])
    if found is None:
        raise Unknown
    weight, order = found
    groups = attribute(node, "group", 1)
    inputs = engine.vector(node.input[0], 1)
    outputs = engine.produce(node, weight, order[0])
    if groups == 1:
        engine.join_axis(weight, order[1], inputs)
    else:
        _in_groups(engine, node, inputs, outputs, (weight, order[1]))
    _finish(engine, node, outputs)


def transposed_convolution(engine: Engine, node: onnx.NodeProto) -> None:
    """ConvTranspose: weight (in, out / groups, *kernel)."""
    found = engine.weight(node.input[1])
    if found is None or attribute(node, "group", 1) != 1:
        raise Unknown
    weight, order = found
    engine.join_axis(weight, order[0], engine.vector(node.input[0], 1))
    _finish(engine, node, engine.produce(node, weight, order[1]))


def _in_groups(engine: Engine, node: onnx.NodeProto, inputs: Labels, outputs: Labels, weight: tuple[str, int]) -> None:
    groups = attribute(node, "group", 1)
    by_group = GroupedLayer(node, inputs.reshape(groups, -1), outputs.reshape(groups, -1), weight)
    if by_group.inputs.shape[1] == 1:
        # Depthwise: what a channel gives rise to goes with it.
        by_group.by_group = True
        engine.ids.union(by_group.inputs, by_group.outputs)
    engine.grouped.append(by_group)


def _finish(engine: Engine, node: onnx.NodeProto, outputs: Labels) -> None:
    if len(node.input) > 2:
        engine.join_vector(node.input[2], outputs)
    rank = len(engine.shape(node.output[0]))
    engine.set(node.output[0], outputs.reshape(1, -1, *[1] * (rank - 2)))


def gemm(engine: Engine, node: onnx.NodeProto) -> None:
    """Gemm: (M, K) x (K, N) + C, either operand transposed or not."""
    found = engine.weight(node.input[1])
    if found is None:
        raise Unknown
    weight, order = found
    output_axis, input_axis = (0, 1) if attribute(node, "transB", 0) else (1, 0)
    inputs = engine.vector(node.input[0], 0 if attribute(node, "transA", 0) else 1)
    engine.join_axis(weight, order[input_axis], inputs)
    outputs = engine.produce(node, weight, order[output_axis]).reshape(1, -1)
    if len(node.input) > 2 and node.input[2]:
        outputs = engine.broadcast([node.input[2]], (outputs,), engine.shape(node.output[0]))
    engine.set(node.output[0], outputs)


def matmul(engine: Engine, node: onnx.NodeProto) -> None:
    """MatMul with a stored weight (in, out) on the right or (out, in) on the left, or of two activations."""
    left, right = node.input
    ranks = len(engine.shape(left)), len(engine.shape(right))
    if min(ranks) < 2:
        raise Unknown
    for data, stored, axis in ((left, right, -1), (right, left, -2)):
        found = engine.weight(stored)
        if found is not None and len(engine.shape(stored)) == 2:
            weight, order = found
            _matmul_weight(engine, node, data, axis, (weight, order[axis], order[-3 - axis]))
            return
    letters = "abcdefghijklmnop"
    batch = letters[: max(ranks) - 2]
    terms = [batch[len(batch) - rank + 2 :] for rank in ranks]
    _contract(engine, node, [terms[0] + "xy", terms[1] + "yz"], batch + "xz")


def _matmul_weight(engine: Engine, node: onnx.NodeProto, data: str, axis: int, stored: tuple[str, int, int]) -> None:
    weight, output_axis, input_axis = stored
    if data in engine.constants:
        engine.freeze(data)  # a table that a layer works on, such as positions: nothing in it is a channel
    rank = len(engine.shape(data))
    labels = engine.labels(data)
    others = [other for other in label_arrays.varying(labels) if other != axis % rank]
    if others:
        # Channels lie along another axis, over which the product only repeats.
        labels = label_arrays.unify(engine.ids, labels, [axis % rank])
        for own in (output_axis, input_axis):
            engine.ids.freeze(engine.weight_axis(weight, own))
        engine.set(node.output[0], labels)
        return
    engine.join_axis(weight, input_axis, engine.vector(data, axis))
    outputs = engine.produce(node, weight, output_axis)
    shape = [1] * rank
    shape[axis] = len(outputs)
    engine.set(node.output[0], outputs.reshape(shape))


def einsum(engine: Engine, node: onnx.NodeProto) -> None:
    """Einsum of two activations without repeated letters or an ellipsis."""
    equation = attribute(node, "equation", "").replace(" ", "")
    terms, arrow, output = equation.partition("->")
    operands = terms.split(",")
    if (
        not arrow
        or len(operands) != 2
        or any(len(set(term)) != len(term) or "." in term for term in (*operands, output))
    ):
        raise Unknown
    _contract(engine, node, operands, output)


def _contract(engine: Engine, node: onnx.NodeProto, terms: list[str], output: str) -> None:
    """Sum products of two activations over the letters that the output lacks."""
    every = output + "".join(letter for letter in dict.fromkeys(terms[0] + terms[1]) if letter not in output)
    operands, lengths = [], []
    for name, term in zip(node.input, terms, strict=True):
        shape, labels = engine.shape(name), engine.labels(name)
        summed = [term.index(letter) for letter in term if letter not in output]
        if any(axis not in summed for axis in label_arrays.varying(labels)):
            labels = label_arrays.unify(engine.ids, labels, summed)
        operands.append(_spread(labels, term, every))
        lengths.append([shape[term.index(letter)] if letter in term else 1 for letter in every])
    for axis in range(len(every)):
        if any(own[axis] > 1 and labels.shape[axis] == 1 for own, labels in zip(lengths, operands, strict=True)):
            operands = [label_arrays.unify(engine.ids, labels, [axis]) for labels in operands]
    over = tuple(range(len(output), len(every)))
    summed_labels = [labels for labels in operands if any(axis in over for axis in label_arrays.varying(labels))]
    for labels in summed_labels[1:]:
        engine.ids.union(summed_labels[0], labels)
    kept = [
        label_arrays.none(labels.ndim) if any(labels is s for s in summed_labels) else labels for labels in operands
    ]
    result = engine.meet(kept, len(every))
    engine.set(node.output[0], result.reshape(result.shape[: len(output)]))


def _spread(labels: Labels, term: str, every: str) -> Labels:
    """Labels with one axis for each letter of `every`, in that order."""
    order = [term.index(letter) for letter in every if letter in term]
    moved = labels.transpose(order)
    lengths = iter(moved.shape)
    return moved.reshape([next(lengths) if letter in term else 1 for letter in every])


def recurrent(gates: int) -> Rule:
    """RNN, GRU, LSTM: W (directions, gates x hidden, in), R (directions, gates x hidden, hidden)."""

    def rule(engine: Engine, node: onnx.NodeProto) -> None:
        names = [*node.input, *[""] * (8 - len(node.input))]
        data, weight, recurrence, bias, _, hidden_state, cell_state, peepholes = names
        if weight not in engine.constants or recurrence not in engine.constants:
            raise Unknown
        engine.join_axis(weight, 2, engine.vector(data, 2))
        # Both directions lose the same units, since they share one axis.
        units = engine.weight_axis(recurrence, 2)
        engine.produce(node, weight, 1, units)
        engine.join_axis(weight, 1, np.tile(units, gates))
        engine.join_axis(recurrence, 1, np.tile(units, gates))
        vectors = [(bias, 2 * gates, 2), (peepholes, 3, 2), (hidden_state, 1, 3), (cell_state, 1, 3)]
        for name, count, rank in vectors:
            if name:
                labels = np.tile(units, count).reshape([1] * (rank - 1) + [-1])
                engine.broadcast([name], (labels,), engine.shape(name))
        for name in node.output:
            if name:
                engine.set(name, units.reshape([1] * (len(engine.shape(name)) - 1) + [-1]))

    return rule


def gather_rows(engine: Engine, node: onnx.NodeProto) -> bool:
    """An embedding: rows of a stored table at places that only a run knows. False where this is something else."""
    found = engine.weight(node.input[0])
    if found is None or node.input[1] in engine.constants or node.input[1] in engine.folding.values:
        return False
    weight, order = found
    if attribute(node, "axis", 0) != 0 or len(order) != 2:
        return False
    engine.ids.freeze(engine.weight_axis(weight, order[0]))
    columns = engine.produce(node, weight, order[1])
    rank = len(engine.shape(node.output[0]))
    engine.set(node.output[0], columns.reshape([1] * (rank - 1) + [-1]))
    return True


RULES: dict[str, Rule] = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
    "RNN": recurrent(1),
    "GRU": recurrent(3),
    "LSTM": recurrent(4),
}
