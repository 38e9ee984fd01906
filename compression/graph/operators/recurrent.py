"""RNN, GRU and LSTM: torch's layers where they compute the same, else the cells of `recurrent_cells`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compression.graph.operators.bindings import Gates
from compression.graph.operators.call import OperatorCall
from compression.graph.operators.recurrent_cells import STEPS, run
from compression.graph.operators.registry import operator

# For each of torch's gates its position among ONNX's: LSTM i f g o from i o f c, GRU r z n from z r h.
_ORDERS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
_ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_LAYERS: dict[str, type[Any]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def _activations(op: OperatorCall, directions: int) -> list[str]:
    given = op.attribute("activations")
    return [str(name).capitalize() for name in given] if given else _ACTIVATIONS[op.node.op_type] * directions


def _layer(op: OperatorCall, directions: int, activations: list[str]) -> nn.Module | None:
    """Torch's layer with the stored weights, None where it would compute something else.

    It has no clipping, peepholes, sequence lengths, reverse-only direction or other activations; its GRU multiplies
    the reset gate after the recurrent product (`linear_before_reset`).
    """
    kind = op.node.op_type
    usual = _ACTIVATIONS[kind] * directions
    relu = kind == "RNN" and activations == ["Relu"] * directions
    gates = Gates(_ORDERS[kind])
    biases = Gates(_ORDERS[kind], groups=2)
    w, r, b = op.stored(1, gates), op.stored(2, gates), op.stored(3, biases)
    fits = (
        (activations == usual or relu)
        and op.attribute("clip") is None
        and op.attribute("direction", "forward") != "reverse"
        and not op.has(4)
        and not op.has(7)
        and not op.attribute("layout", 0)
        and not op.attribute("input_forget", 0)
        and (kind != "GRU" or op.attribute("linear_before_reset", 0))
    )
    if not fits or w is None or r is None or (op.has(3) and b is None):
        return None
    weights, recurrent = op.parameters(w, gates), op.parameters(r, gates)
    options = {"nonlinearity": "relu" if relu else "tanh"} if kind == "RNN" else {}
    layer: nn.Module = _LAYERS[kind](
        weights[0].shape[1],
        recurrent[0].shape[1],
        bias=b is not None,
        bidirectional=directions == 2,
        device="meta",
        **options,
    )
    bias = op.parameters(b, biases) if b is not None else ()
    for direction in range(directions):
        suffix = "_l0" + "_reverse" * direction
        setattr(layer, f"weight_ih{suffix}", weights[direction])
        setattr(layer, f"weight_hh{suffix}", recurrent[direction])
        if bias:
            setattr(layer, f"bias_ih{suffix}", bias[2 * direction])
            setattr(layer, f"bias_hh{suffix}", bias[2 * direction + 1])
    return layer


def split_directions(y: torch.Tensor, directions: int) -> torch.Tensor:
    """Torch's (steps, batch, directions x hidden) as ONNX's (steps, directions, batch, hidden)."""
    return y.unflatten(-1, (directions, -1)).movedim(2, 1)


@operator("RNN", "GRU", "LSTM")
def recurrent(op: OperatorCall) -> Any:
    kind = op.node.op_type
    directions = 2 if op.attribute("direction", "forward") == "bidirectional" else 1
    activations = _activations(op, directions)
    layer = _layer(op, directions, activations)
    if layer is None:
        return _general(op, directions, activations)
    x, hidden, cell = op.tensor(0), op.optional(5), op.optional(6)
    state = None
    if hidden is not None or cell is not None:
        given = hidden if hidden is not None else cell
        blank = op.call(torch.zeros_like, given)
        first = hidden if hidden is not None else blank
        state = (first, cell if cell is not None else blank) if kind == "LSTM" else first
    arguments = (x,) if state is None else (x, state)
    results = op.layer(layer, *arguments, named_after=(op.stored(1),))
    y, last = op.item(results, 0), op.item(results, 1)
    outputs = [op.call(split_directions, y, directions) if op.wants(0) else None]
    return [*outputs, op.item(last, 0), op.item(last, 1)] if kind == "LSTM" else [*outputs, last]


def _general(op: OperatorCall, directions: int, activations: list[str]) -> Any:
    names = set(activations) - STEPS.keys()
    if names:
        op.reject(f"attribute 'activations' = {sorted(names)}")
    results = op.call(
        run,
        op.node.op_type,
        op.tensor(0),
        op.tensor(1),
        op.tensor(2),
        op.optional(3),
        op.optional(4),
        op.optional(5),
        op.optional(6) if op.node.op_type == "LSTM" else None,
        op.optional(7) if op.node.op_type == "LSTM" else None,
        activations=activations,
        alpha=op.attribute("activation_alpha"),
        beta=op.attribute("activation_beta"),
        clip=op.attribute("clip"),
        backwards=op.attribute("direction", "forward") == "reverse",
        batch_first=bool(op.attribute("layout", 0)),
        reset_after=bool(op.attribute("linear_before_reset", 0)),
        couple=bool(op.attribute("input_forget", 0)),
        directions=directions,
    )
    return [op.item(results, index) for index in range(op.outputs)]
