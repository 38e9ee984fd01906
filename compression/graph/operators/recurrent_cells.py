"""Recurrent networks step by step, with everything that ONNX allows and torch's layers lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

# Each takes the value, alpha and beta; ONNX gives both by position even to those that ignore them.
STEPS: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    "Relu": lambda x, _alpha, _beta: functional.relu(x),
    "Tanh": lambda x, _alpha, _beta: torch.tanh(x),
    "Sigmoid": lambda x, _alpha, _beta: torch.sigmoid(x),
    "Softsign": lambda x, _alpha, _beta: functional.softsign(x),
    "Softplus": lambda x, _alpha, _beta: functional.softplus(x),
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "Leakyrelu": lambda x, alpha, _beta: functional.leaky_relu(x, alpha),
    "Thresholdedrelu": lambda x, alpha, _beta: torch.where(x > alpha, x, torch.zeros_like(x)),
    "Scaledtanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "Hardsigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "Elu": lambda x, alpha, _beta: functional.elu(x, alpha),
}
_DEFAULTS = {
    "Affine": (1.0, 0.0),
    "Leakyrelu": (0.01, 0.0),
    "Thresholdedrelu": (1.0, 0.0),
    "Scaledtanh": (1.0, 1.0),
    "Hardsigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
}


@dataclass(frozen=True)
class _Cell:
    """One direction: weights (gates x hidden, …), biases, peepholes and options."""

    kind: str
    w: torch.Tensor
    r: torch.Tensor
    input_bias: torch.Tensor
    recurrent_bias: torch.Tensor
    peepholes: torch.Tensor | None
    functions: Sequence[Callable[[torch.Tensor], torch.Tensor]]
    clip: float | None
    reset_after: bool
    couple: bool

    def bounded(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def step(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        match self.kind:
            case "LSTM":
                return self._lstm(x, h, c)
            case "GRU":
                return self._gru(x, h), c
            case _:
                total = functional.linear(x, self.w, self.input_bias) + functional.linear(
                    h, self.r, self.recurrent_bias
                )
                return self.functions[0](self.bounded(total)), c

    def _gru(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Gates z r h; `linear_before_reset` multiplies the reset gate after the recurrent product."""
        xz, xr, xh = functional.linear(x, self.w, self.input_bias).chunk(3, -1)
        rz, rr, rh = self.r.chunk(3)
        bz, br, bh = self.recurrent_bias.chunk(3)
        z = self.functions[0](self.bounded(xz + functional.linear(h, rz, bz)))
        r = self.functions[0](self.bounded(xr + functional.linear(h, rr, br)))
        inner = r * functional.linear(h, rh, bh) if self.reset_after else functional.linear(r * h, rh, bh)
        return (1 - z) * self.functions[1](self.bounded(xh + inner)) + z * h

    def _lstm(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gates i o f c, peepholes i o f. Gers and Schmidhuber 2000, "Recurrent nets that time and count"."""
        gates = functional.linear(x, self.w, self.input_bias) + functional.linear(h, self.r, self.recurrent_bias)
        i, o, f, g = gates.chunk(4, -1)
        pi, po, pf = self.peepholes.chunk(3) if self.peepholes is not None else (None, None, None)
        i = self.functions[0](self.bounded(i if pi is None else i + pi * c))
        f = 1 - i if self.couple else self.functions[0](self.bounded(f if pf is None else f + pf * c))
        c = f * c + i * self.functions[1](self.bounded(g))
        o = self.functions[0](self.bounded(o if po is None else o + po * c))
        return o * self.functions[2](c), c


def _functions(
    names: Sequence[str], alpha: list[float] | None, beta: list[float] | None
) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Activations with their parameters, which are listed only for those that take any."""
    alphas, betas = list(alpha or []), list(beta or [])
    bound = []
    for name in names:
        first, second = _DEFAULTS.get(name, (0.0, 0.0))
        if name in _DEFAULTS:
            first = alphas.pop(0) if alphas else first
            if name in ("Affine", "Scaledtanh", "Hardsigmoid"):
                second = betas.pop(0) if betas else second
        bound.append(_bind(STEPS[name], first, second))
    return bound


def _bind(function: Callable[..., torch.Tensor], alpha: float, beta: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: function(x, alpha, beta)


def run(
    kind: str,
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None,
    lengths: torch.Tensor | None,
    hidden: torch.Tensor | None,
    cell: torch.Tensor | None,
    peepholes: torch.Tensor | None,
    *,
    activations: Sequence[str],
    alpha: list[float] | None,
    beta: list[float] | None,
    clip: float | None,
    backwards: bool,
    batch_first: bool,
    reset_after: bool,
    couple: bool,
    directions: int,
) -> tuple[torch.Tensor, ...]:
    """A whole sequence through one or two directions.

    Args:
        kind: `RNN`, `GRU` or `LSTM`.
        x: (steps, batch, inputs), or (batch, steps, inputs) if `batch_first`.
        w: (directions, gates x hidden, inputs).
        r: (directions, gates x hidden, hidden).
        b: (directions, 2 x gates x hidden).
        lengths: (batch,): steps of each sample; what lies beyond gives zeros and keeps the state.
        hidden: (directions, batch, hidden), or batch first.
        cell: Likewise; LSTM only.
        peepholes: (directions, 3 x hidden); LSTM only.
        activations: Names, for one direction after the other.
        alpha: Parameters of the activations that have any.
        beta: Their second parameters.
        clip: Bound of the activations' inputs.
        backwards: The only direction is the reverse one.
        batch_first: ONNX's `layout` 1.
        reset_after: GRU's `linear_before_reset`.
        couple: LSTM's `input_forget`: the forget gate is one minus the input gate.
        directions: 1 or 2.

    Returns:
        All outputs (steps, directions, batch, hidden), the last state and, for an LSTM, the last cell.
    """
    if batch_first:
        x = x.transpose(0, 1)
        hidden = None if hidden is None else hidden.transpose(0, 1)
        cell = None if cell is None else cell.transpose(0, 1)
    width = r.shape[-1]
    functions = _functions(activations, alpha, beta)
    each = len(functions) // directions
    outputs, hiddens, cells = [], [], []
    for d in range(directions):
        bias = x.new_zeros(2 * w.shape[1]) if b is None else b[d]
        input_bias, recurrent_bias = bias.chunk(2)
        peephole = None if peepholes is None else peepholes[d]
        own = functions[d * each : (d + 1) * each]
        layer = _Cell(kind, w[d], r[d], input_bias, recurrent_bias, peephole, own, clip, reset_after, couple)
        h = x.new_zeros(x.shape[1], width) if hidden is None else hidden[d]
        c = x.new_zeros(x.shape[1], width) if cell is None else cell[d]
        y, h, c = _direction(layer, x, h, c, lengths, backwards or d == 1)
        outputs.append(y)
        hiddens.append(h)
        cells.append(c)
    results: list[Any] = [torch.stack(outputs, 1), torch.stack(hiddens), torch.stack(cells)]
    if batch_first:
        results = [results[0].permute(2, 0, 1, 3), results[1].transpose(0, 1), results[2].transpose(0, 1)]
    return tuple(results if kind == "LSTM" else results[:2])


def _direction(
    layer: _Cell,
    x: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor,
    lengths: torch.Tensor | None,
    backwards: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows: list[torch.Tensor] = []
    steps = range(x.shape[0])
    for at in reversed(steps) if backwards else steps:
        new_h, new_c = layer.step(x[at], h, c)
        if lengths is None:
            h, c = new_h, new_c
            rows.append(h)
        else:
            live = (at < lengths).unsqueeze(-1)
            h, c = torch.where(live, new_h, h), torch.where(live, new_c, c)
            rows.append(torch.where(live, new_h, torch.zeros_like(new_h)))
    return torch.stack(rows[::-1] if backwards else rows), h, c
