"""Operators that treat every element, or every element along some axes, alike."""

from __future__ import annotations

import onnx

from compression.pruning.channels import label_arrays
from compression.pruning.channels.engine import Engine, Rule, Unknown, attribute

_UNARY = (
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Shrink",
    "BitwiseNot",
)
_MANY = (
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Clip",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
)
_REDUCTIONS = (
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)


def unary(engine: Engine, node: onnx.NodeProto) -> None:
    engine.set(node.output[0], engine.labels(node.input[0]))


def dropout(engine: Engine, node: onnx.NodeProto) -> None:
    for name in node.output:
        engine.set(name, engine.labels(node.input[0]))


def many(engine: Engine, node: onnx.NodeProto) -> None:
    shape = engine.shape(node.output[0])
    names = [name for name in node.input if name]
    engine.set(node.output[0], engine.broadcast(names, (), shape))


def reduce(engine: Engine, node: onnx.NodeProto) -> None:
    """Sums and extremes over channels are those of what is left."""
    data, output = node.input[0], node.output[0]
    shape, axes = engine.shape(data), _reduced_axes(engine, node)
    labels = engine.labels(data)
    over = [axis for axis in label_arrays.varying(labels) if axis in axes]
    others = [axis for axis in label_arrays.varying(labels) if axis not in axes]
    if over and (others or (node.op_type in ("ReduceMean", "ReduceProd") and not _normalizes(engine, node))):
        # The mean of fewer channels is another one, unless channels are only centred and scaled by it.
        labels = label_arrays.unify(engine.ids, labels, over)
    left = labels
    for axis in axes:
        left = left.take([0], axis) if labels.shape[axis] > 1 else left
    if labels.size > 1 and left.size == 1:
        left = label_arrays.none(left.ndim)
    if not attribute(node, "keepdims", 1):
        left = left.reshape([length for axis, length in enumerate(left.shape) if axis not in axes])
    if left.ndim != len(engine.shape(output)) or len(shape) != labels.ndim:
        raise Unknown
    engine.set(output, left)


def _reduced_axes(engine: Engine, node: onnx.NodeProto) -> list[int]:
    rank = len(engine.shape(node.input[0]))
    axes = attribute(node, "axes", None)
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in engine.folding.values:
            raise Unknown
        axes = engine.folding.values[node.input[1]].reshape(-1).tolist()
    if not axes:
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in axes]


def _normalizes(engine: Engine, node: onnx.NodeProto) -> bool:
    """Whether a mean serves to centre or to scale what it was taken of, as in layer and RMS norms."""
    data, mean = node.input[0], node.output[0]
    if any(user.op_type == "Sub" and data in user.input for user in engine.used_by.get(mean, ())):
        return True
    maker = engine.made_by.get(data)
    if maker is None:
        return False
    return maker.op_type == "Pow" or (maker.op_type == "Mul" and maker.input[0] == maker.input[1])


def along_axis(default: int) -> Rule:
    """Operators that need all entries along an axis: those channels stay."""

    def rule(engine: Engine, node: onnx.NodeProto) -> None:
        rank = len(engine.shape(node.input[0]))
        axis = attribute(node, "axis", default) % rank
        if node.op_type == "CumSum":
            axis = int(engine.folding.values[node.input[1]]) % rank if node.input[1] in engine.folding.values else -1
        old = engine.folding.opset < 13 and node.op_type in ("Softmax", "LogSoftmax", "Hardmax")
        if axis < 0:
            raise Unknown
        axes = range(axis, rank) if old else [axis]
        labels = label_arrays.unify(engine.ids, engine.labels(node.input[0]), axes)
        for output in node.output:
            if not output:
                continue
            fits = labels.ndim == len(engine.shape(output))
            engine.set(output, labels if fits else labels.squeeze(axis))

    return rule


RULES: dict[str, Rule] = (
    dict.fromkeys(_UNARY, unary)
    | dict.fromkeys(_MANY, many)
    | {"Dropout": dropout}
    | dict.fromkeys(
        _REDUCTIONS,
        reduce,
    )
    | {name: along_axis(-1) for name in ("Softmax", "LogSoftmax", "Hardmax", "TopK", "CumSum")}
    | {name: along_axis(0) for name in ("ArgMax", "ArgMin")}
)
