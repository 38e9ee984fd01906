"""Where float16 does not suffice: values beyond 65,504, and tensors that it has no digits for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from compression.context import Context
from compression.data import Batch
from compression.graph import walk
from compression.quantization import prepare
from compression.quantization.integer.observe import memory_groups, with_outputs

Array = npt.NDArray[Any]

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
# Other inputs reach further than the samples did.
_HEADROOM = 2.0
# A tensor whose largest magnitude is below has fewer than three digits in float16.
_DIMMEST = 4 * SMALLEST_NORMAL
# Share of a weight's values, zeros aside, that may lose digits.
_FEW = 0.5


@dataclass(frozen=True)
class Reach:
    """The largest finite magnitude of a value; 0 where there is none."""

    largest: float

    @property
    def overflows(self) -> bool:
        return self.largest * _HEADROOM > LARGEST

    @property
    def vanishes(self) -> bool:
        return 0 < self.largest < _DIMMEST

    def reason(self, what: str) -> str:
        """Why a node that has to do with the value stays in float32."""
        if self.overflows:
            return f"{what} reaches {self.largest:.3g}; float16 ends at 65,504"
        return f"{what} stays below {self.largest:.2g}, where float16 has hardly a digit"


def reaches(model: onnx.ModelProto, batches: Iterable[Batch], context: Context) -> dict[str, Reach]:
    """The reach of every float32 value that the main graph computes or is fed.

    Infinities do not count: masks of attention are made of them, and float16 has them, too.

    Args:
        model: A float model whose shapes are known as far as they can be.
        batches: Samples; read once for every group of values that fits into memory.
        context: Threads and cancellation.

    Raises:
        StepFailed: `unsupported_by_runtime`.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    computed = [name for node in model.graph.node for name in node.output if kinds.get(name) == TensorProto.FLOAT]
    found: dict[str, float] = {}
    kept = list(batches)
    for batch in kept:
        for name, array in batch.inputs.items():
            _note(found, name, array)
    for group in memory_groups(inferred, computed):
        with prepare.runtime_failures("looking for what float16 cannot hold"):
            session = prepare.session(with_outputs(inferred, group).SerializeToString(), context)
            for batch in kept:
                context.check_cancelled()
                for name, array in zip(group, session.run(group, dict(batch.inputs)), strict=True):
                    _note(found, name, array)
    return {name: Reach(largest) for name, largest in found.items()}


def _note(found: dict[str, float], name: str, array: Array) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.size:
        return
    magnitude = np.abs(array)
    largest = float(np.max(magnitude, initial=0.0, where=np.isfinite(magnitude)))
    found[name] = max(found.get(name, 0.0), largest)


def kept_nodes(model: onnx.ModelProto, reach: Mapping[str, Reach]) -> dict[str, str]:
    """Nodes of the main graph that have to compute in float32, each with the reason, in the order of the graph.

    Those are the nodes that make or read a value that float16 cannot hold, stored values among them.
    """
    reach = dict(reach) | dict(_stored(model))
    found: dict[str, str] = {}
    for node in model.graph.node:
        # What a subgraph reads from outside is read by the node that holds it.
        inner = [name for graph in walk.subgraphs(node) for own in graph.node for name in own.input]
        for name in (*node.output, *node.input, *inner):
            one = reach.get(name)
            if one is not None and (one.overflows or one.vanishes):
                found.setdefault(node.name, one.reason(f"'{name}'"))
                break
    return found


def _stored(model: onnx.ModelProto) -> Iterator[tuple[str, Reach]]:
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        magnitude = np.abs(numpy_helper.to_array(tensor)).ravel()
        nonzero = magnitude[(magnitude > 0) & np.isfinite(magnitude)]
        if not nonzero.size:
            continue
        largest = float(nonzero.max())
        few = float((nonzero < SMALLEST_NORMAL).mean()) <= _FEW
        # What most of a tensor lies below decides about its digits, one large value or not.
        yield tensor.name, Reach(largest if few or largest * _HEADROOM > LARGEST else float(np.median(nonzero)))


def with_own_copies(model: onnx.ModelProto, kept: Iterable[str]) -> None:
    """Give, in place, the named nodes copies of stored floats that other nodes read as well.

    The converter makes one float16 tensor of them otherwise, which nodes in float32 would read back.
    """
    names = frozenset(kept)
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    elsewhere = {name for node in model.graph.node if node.name not in names for name in node.input}
    elsewhere |= {
        name for node in model.graph.node for graph in walk.subgraphs(node) for own in graph.node for name in own.input
    }
    taken = {name for graph, _ in walk.graphs(model) for name in walk.defined(graph)}
    copies: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in names:
            continue
        for position, name in enumerate(node.input):
            if name not in stored or name not in elsewhere:
                continue
            if name not in copies:
                copies[name] = f"{name}.float32"
                while copies[name] in taken:
                    copies[name] += "_"
                copy = model.graph.initializer.add()
                copy.CopyFrom(stored[name])
                copy.name = copies[name]
            node.input[position] = copies[name]


def without_detours(model: onnx.ModelProto) -> None:
    """Take out, in place, casts to float16 and back between two nodes in float32, which would lose what they keep."""
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    direct: dict[str, str] = {}
    for node in casts.values():
        inner = casts.get(node.input[0])
        if inner is not None and (_target(node), _target(inner)) == (TensorProto.FLOAT, TensorProto.FLOAT16):
            node.input[0] = inner.input[0]
            direct[node.output[0]] = inner.input[0]
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = direct.get(name, name)
    outputs = {value.name for value in model.graph.output}
    while True:
        used = {name for node in walk.nodes(model) for name in node.input} | outputs
        unused = [node for node in model.graph.node if node.op_type == "Cast" and node.output[0] not in used]
        if not unused:
            return
        for node in unused:
            model.graph.node.remove(node)


def _target(cast: onnx.NodeProto) -> int:
    return walk.integer(cast, "to")
