"""If, Loop and Scan: modules that own the graphs of their branches and bodies.

What a body reads from the graph around it becomes explicit: its captures are extra inputs, after its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import torch_dtype
from compression.graph.operators.registry import operator


class If(nn.Module):  # type: ignore[misc, unused-ignore]  # untyped where torch is not installed
    """Runs one of two graphs.

    Args:
        then_branch: Run when the condition holds.
        else_branch: Run otherwise.
        then_inputs: Which of the captured values the first branch takes.
        else_inputs: Likewise the second.
    """

    def __init__(
        self,
        then_branch: fx.GraphModule,
        else_branch: fx.GraphModule,
        then_inputs: Sequence[int],
        else_inputs: Sequence[int],
    ) -> None:
        super().__init__()
        self.then_branch, self.else_branch = then_branch, else_branch
        self.then_inputs, self.else_inputs = tuple(then_inputs), tuple(else_inputs)

    def forward(self, condition: torch.Tensor, *captured: Any) -> tuple[Any, ...]:
        if condition.item():
            return _tuple(self.then_branch(*(captured[index] for index in self.then_inputs)))
        return _tuple(self.else_branch(*(captured[index] for index in self.else_inputs)))


class Loop(nn.Module):  # type: ignore[misc, unused-ignore]  # untyped where torch is not installed
    """Runs its body until the trip count is reached or its condition fails.

    The body takes the iteration number, the condition, the carried values and the captures, and returns the condition,
    the carried values and what is to be stacked over the iterations.

    Args:
        body: The body's graph.
        carried: How many values go from one iteration to the next.
        blanks: For each result that is stacked over the iterations, its element type and shape after no iteration.
    """

    def __init__(
        self, body: fx.GraphModule, carried: int, blanks: Sequence[tuple[torch.dtype, tuple[int, ...]]]
    ) -> None:
        super().__init__()
        self.body = body
        self.carried = carried
        self.blanks = tuple(blanks)

    def forward(
        self, trips: torch.Tensor | None, condition: torch.Tensor | None, carried: list[Any], captured: list[Any]
    ) -> tuple[Any, ...]:
        limit = None if trips is None else int(trips)
        going = True if condition is None else bool(condition)
        rows: list[list[torch.Tensor]] = [[] for _ in self.blanks]
        device = next((value.device for value in (*carried, *captured) if isinstance(value, torch.Tensor)), None)
        done = 0
        while going and (limit is None or done < limit):
            number, truth = torch.tensor(done, device=device), torch.tensor(going, device=device)
            results = _tuple(self.body(number, truth, *carried, *captured))
            going = bool(results[0])
            carried = list(results[1 : 1 + self.carried])
            for row, value in zip(rows, results[1 + self.carried :], strict=True):
                row.append(value)
            done += 1
        stacked = [
            torch.stack(row) if row else torch.empty(shape, dtype=dtype, device=device)
            for row, (dtype, shape) in zip(rows, self.blanks, strict=True)
        ]
        return (*carried, *stacked)


class Scan(nn.Module):  # type: ignore[misc, unused-ignore]  # untyped where torch is not installed
    """Runs its body once per slice of its scanned inputs and stacks its scanned outputs.

    Args:
        body: Takes states, slices and captures; returns states and slices.
        input_axes: Axis that is scanned, per scanned input.
        input_reversed: Whether that is scanned from the end.
        output_axes: Axis on which the slices are stacked, per scanned output.
        output_reversed: Whether they are stacked from the end.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        input_axes: Sequence[int],
        input_reversed: Sequence[int],
        output_axes: Sequence[int],
        output_reversed: Sequence[int],
    ) -> None:
        super().__init__()
        self.body = body
        self.input_axes, self.input_reversed = tuple(input_axes), tuple(input_reversed)
        self.output_axes, self.output_reversed = tuple(output_axes), tuple(output_reversed)

    def forward(self, states: list[Any], scanned: list[torch.Tensor], captured: list[Any]) -> tuple[Any, ...]:
        slices = [
            tensor.flip(axis).unbind(axis) if backwards else tensor.unbind(axis)
            for tensor, axis, backwards in zip(scanned, self.input_axes, self.input_reversed, strict=True)
        ]
        rows: list[list[torch.Tensor]] = [[] for _ in self.output_axes]
        for step in zip(*slices, strict=True):
            results = _tuple(self.body(*states, *step, *captured))
            for row, value in zip(rows, results[len(states) :], strict=True):
                row.append(value)
            states = list(results[: len(states)])
        stacked = [
            torch.stack(row[::-1] if backwards else row, axis)
            for row, axis, backwards in zip(rows, self.output_axes, self.output_reversed, strict=True)
        ]
        return (*states, *stacked)


def _tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def _results(op: OperatorCall, values: Any) -> list[Any]:
    return [op.item(values, index) for index in range(len(op.node.output))]


@operator("If")
def if_(op: OperatorCall) -> Any:
    """A condition that is known at import is resolved: only the branch taken is imported."""
    condition = op.constant(0)
    if condition is not None:
        taken = op.nested("then_branch" if bool(condition) else "else_branch")
        branch = taken.build()
        values = op.layer(Always(branch), *op.captured(taken.captures))
        return _results(op, values)
    builders = [op.nested(name) for name in ("then_branch", "else_branch")]
    branches = [builder.build() for builder in builders]
    names = list(dict.fromkeys(name for builder in builders for name in builder.captures))
    inputs = [[names.index(name) for name in builder.captures] for builder in builders]
    module = If(branches[0], branches[1], inputs[0], inputs[1])
    return _results(op, op.layer(module, op.tensor(0), *op.captured(names)))


class Always(nn.Module):  # type: ignore[misc, unused-ignore]  # untyped where torch is not installed
    """The branch of an If whose condition was known at import."""

    def __init__(self, branch: fx.GraphModule) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, *captured: Any) -> tuple[Any, ...]:
        return _tuple(self.branch(*captured))


def _tensors_only(op: OperatorCall) -> None:
    graph = op.graph_attribute("body")
    for value in (*graph.input, *graph.output):
        if value.type.WhichOneof("value") not in ("tensor_type", None):
            op.reject("a loop that carries sequences or optional values")


@operator("Loop")
def loop(op: OperatorCall) -> Any:
    _tensors_only(op)
    builder = op.nested("body")
    body = builder.build()
    carried = [op.tensor(position) for position in range(2, len(op.node.input))]
    captured = op.captured(builder.captures)
    # Lengths that are not known are none after no iteration, as in ONNX Runtime.
    blanks = [
        (torch_dtype(element_type or 1) or torch.float32, (0, *(length or 0 for length in shape or ())))
        for element_type, shape in builder.output_types()[1 + len(carried) :]
    ]
    module = Loop(body, len(carried), blanks)
    return _results(op, op.layer(module, op.optional(0), op.optional(1), carried, captured))


class BatchedScan(nn.Module):  # type: ignore[misc, unused-ignore]  # untyped where torch is not installed
    """Scan of operator set 8: one scan per sample of the batch, which is axis 0; the sequence is axis 1."""

    def __init__(self, scan: Scan) -> None:
        super().__init__()
        self.scan = scan

    def forward(self, states: list[Any], scanned: list[torch.Tensor], captured: list[Any]) -> tuple[Any, ...]:
        samples = [
            self.scan([state[at] for state in states], [tensor[at] for tensor in scanned], captured)
            for at in range(scanned[0].shape[0])
        ]
        return tuple(torch.stack(values) for values in zip(*samples, strict=True))


@operator("Scan")
def scan_batched(op: OperatorCall) -> Any:
    if op.has(0):
        op.reject("an input 'sequence_lens'")
    builder = op.nested("body")
    body = builder.build()
    count = op.attribute("num_scan_inputs")
    inputs = [op.tensor(position) for position in range(1, len(op.node.input))]
    states = len(inputs) - count
    outputs = len(op.node.output) - states
    module = Scan(body, [0] * count, op.attribute("directions", [0] * count), [0] * outputs, [0] * outputs)
    captured = op.captured(builder.captures)
    return _results(op, op.layer(BatchedScan(module), inputs[:states], inputs[states:], captured))


@operator("Scan", since=9)
def scan(op: OperatorCall) -> Any:
    builder = op.nested("body")
    body = builder.build()
    count = op.attribute("num_scan_inputs")
    states = len(op.node.input) - count
    outputs = len(op.node.output) - states
    module = Scan(
        body,
        op.attribute("scan_input_axes", [0] * count),
        op.attribute("scan_input_directions", [0] * count),
        op.attribute("scan_output_axes", [0] * outputs),
        op.attribute("scan_output_directions", [0] * outputs),
    )
    inputs = op.tensors()
    captured = op.captured(builder.captures)
    return _results(op, op.layer(module, inputs[:states], inputs[states:], captured))
