"""What each kernel of ONNX Runtime takes, attributed to the nodes of the graph that it computes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from compression.context import Context
from compression.quantization import prepare

Inputs = Mapping[str, Any]

_UNTIMED_RUNS = 2
# The runtime names what it rewrites after a node or a value of the graph, with such endings.
_ENDING = re.compile(r"(_token_\d+|_nhwc|_quant|/\w+Fusion/)+$")
# Kernels on blocked channels are named after what they compute, all others after a node.
_BLOCKED = "_nchwc"
_EVENT = "_kernel_time"
# Nodes that change the form of values between kernels; they belong to no node of the graph.
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput"})


@dataclass(frozen=True)
class KernelTimes:
    """Fewest seconds of a call, by node.

    Attributes:
        nodes: Seconds of those nodes of the graph that have a kernel; nodes that are part of another's have none.
        conversions: Seconds of kernels that only change the form of values, and of those that belong to no node.
    """

    nodes: Mapping[str, float]
    conversions: float

    @property
    def total(self) -> float:
        return sum(self.nodes.values()) + self.conversions


def kernel_times(
    models: Sequence[onnx.ModelProto], graph: onnx.ModelProto, inputs: Inputs, context: Context, *, runs: int
) -> list[KernelTimes]:
    """Run models in turns under ONNX Runtime's profiler.

    Args:
        models: Forms of the same graph, such as with and without pairs.
        graph: The graph whose nodes are of interest; every node is named.
        inputs: One call's arrays by input name.
        context: Threads, cancellation, and the folder for the profiler's files.
        runs: Calls of each model that count.

    Raises:
        StepFailed: `unsupported_by_runtime`.
    """
    with prepare.temporary_folder(context) as folder, prepare.runtime_failures("profiling"):
        ready = [_Profiled(model, folder / str(place), context) for place, model in enumerate(models)]
        for _ in range(_UNTIMED_RUNS + runs):
            context.check_cancelled()
            for profiled in ready:
                profiled.session.run(None, dict(inputs))
        return [profiled.times(graph) for profiled in ready]


class _Profiled:
    def __init__(self, model: onnx.ModelProto, folder: Path, context: Context) -> None:
        folder.mkdir()
        self._optimized = folder / "optimized.onnx"
        self.session = prepare.session(
            model.SerializeToString(),
            context,
            entries={"session.optimized_model_external_initializers_file_name": "optimized.weights"},
            enable_profiling=True,
            profile_file_prefix=str(folder / "profile"),
            optimized_model_filepath=str(self._optimized),
        )

    def times(self, graph: onnx.ModelProto) -> KernelTimes:
        events = json.loads(Path(self.session.end_profiling()).read_bytes())
        # The weights lie in a file of their own and are not wanted.
        kernels = onnx.load(self._optimized, load_external_data=False)
        return attribute(durations(events), kernels, graph)


def durations(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fewest seconds of each kernel by its node's name, from the profiler's events; its first calls do not count.

    Not the median: when another process gets the core in the middle of a call, it often is in the same kernel.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_EVENT):
            found[name.removesuffix(_EVENT)].append(float(event["dur"]) * 1e-6)
    return {name: min(seconds[_UNTIMED_RUNS:] or seconds) for name, seconds in found.items()}


def attribute(seconds: Mapping[str, float], kernels: onnx.ModelProto, graph: onnx.ModelProto) -> KernelTimes:
    """Sum up kernels by the node of `graph` that each computes, be it the last of several.

    Args:
        seconds: By kernel.
        kernels: The graph that the runtime executes.
        graph: The graph that it was given.
    """
    names = {node.name for node in graph.graph.node}
    producers = {output: node.name for node in graph.graph.node for output in node.output if output}
    executed = {node.name: node for node in kernels.graph.node}
    found: dict[str, float] = defaultdict(float)
    conversions = 0.0
    for name, duration in seconds.items():
        kernel = executed.get(name)
        owner = None if kernel is None else _owner(kernel, names, producers)
        if owner is None:
            conversions += duration
        else:
            found[owner] += duration
    return KernelTimes(dict(found), conversions)


def _owner(kernel: onnx.NodeProto, names: set[str], producers: Mapping[str, str]) -> str | None:
    blocked = producers.get(kernel.name.removesuffix(_BLOCKED)) if kernel.name.endswith(_BLOCKED) else None
    if blocked is not None:
        return blocked
    plain = _ENDING.sub("", kernel.name)
    if plain in names:
        return plain
    if kernel.op_type in _CONVERSIONS:
        return None
    return next((producers[value] for value in kernel.output if value in producers), None)
