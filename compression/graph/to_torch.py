"""An ONNX model as a torch module whose parameters are the model's initializers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from onnx import inliner
from torch import fx

from compression.errors import StepFailed
from compression.graph import walk
from compression.graph.memory_format import lay_out
from compression.graph.operators import find
from compression.graph.operators.bindings import Use
from compression.graph.operators.builder import GraphBuilder, ImportState, Problem
from compression.graph.operators.constants import constants
from compression.graph.operators.scopes import Scope, count_uses, first_output, scopes
from compression.graph.operators.weight_store import WeightStore

# Earlier operator sets broadcast by attributes instead of NumPy's rules.
_OLDEST_OPSET = 7
# Initializers larger than this many bytes cannot be shapes or axes, so type inference works without their values.
_INFERENCE_BYTES = 4096
# torch copies the attributes under this key of `meta` when a GraphModule is copied or pickled.
_PRESERVED = "_user_preserved_attributes"


class UnsupportedOperator(StepFailed):
    """The model uses operators that cannot be imported for training.

    Attributes:
        problems: Every node that cannot be imported, with its operator, domain, operator set version and the reason.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = "; ".join(
            f"node '{problem.node}', {problem.operator} ({problem.domain or 'ai.onnx'} {problem.opset}): "
            f"{problem.reason}"
            for problem in self.problems[:5]
        )
        more = f"; and {len(self.problems) - 5} more" if len(self.problems) > 5 else ""
        super().__init__(
            "operator_not_importable",
            # Which steps train is the specs' to say (`data_needed`); a list here would go stale.
            f"This model cannot be trained: {shown}{more}. Steps that need no training dataset can still run on it.",
        )


def to_torch(model: onnx.ModelProto, *, device: str | torch.device = "cpu") -> fx.GraphModule:
    """Import a model as an `fx.GraphModule` in evaluation mode.

    Float initializers are parameters of the same names, but for what `compression.graph.operators.constants` tells
    apart (masks, rotary positions, what no gradient reaches); layers are `nn.Conv*`, `nn.Linear`, `nn.BatchNorm*` and
    the like where those compute exactly what the node does. The module takes the graph's inputs in order and returns
    its only output, or a tuple of them. Every fx node knows its ONNX node: `node.meta["onnx"]` is an `OnnxOrigin`.

    The module carries `initializer_names` (parameter name -> initializer name), `bindings` (the same with layouts and
    running statistics, see `compression.graph.operators.bindings`), `input_names` and `output_names`.

    Args:
        model: A complete model (no external data), operator set 7 or newer.
        device: Where parameters and buffers go. Shape arithmetic stays on the CPU.

    Raises:
        UnsupportedOperator: naming all nodes that cannot be imported.
    """
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", _OLDEST_OPSET) < _OLDEST_OPSET:
        raise UnsupportedOperator([_too_old(node, opsets[""]) for node in model.graph.node])
    places = _places(model)
    model = _expanded(model, opsets)
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    state = ImportState(opsets, _inferred_types(model), WeightStore(count_uses(model), places), constants(model))
    module = GraphBuilder(model.graph, state).build()
    if state.problems:
        raise UnsupportedOperator(state.problems)
    bindings = state.weights.bindings(module)
    parameters = dict(module.named_parameters())
    stored = {tensor.name for tensor in model.graph.initializer}
    attributes = {
        "bindings": bindings,
        "initializer_names": {
            target: binding.initializer for binding in bindings for target in binding.targets if target in parameters
        },
        "input_names": tuple(value.name for value in model.graph.input if value.name not in stored),
        "output_names": tuple(value.name for value in model.graph.output),
    }
    for name, value in attributes.items():
        setattr(module, name, value)
    module.meta[_PRESERVED] = attributes
    lay_out(module)
    return module.eval().to(device)


def _places(model: onnx.ModelProto) -> frozenset[Use]:
    """Every place of the file where a node reads something."""
    return frozenset(
        Use(first_output(node), position, scope)
        for scope, graph in scopes(model.graph)
        for node in graph.node
        for position in range(len(node.input))
    )


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401 - whatever a module gives
    """What a module gives, as a tuple also where that is a single tensor."""
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _too_old(node: onnx.NodeProto, opset: int) -> Problem:
    reason = f"operator sets below {_OLDEST_OPSET} are not supported"
    return Problem(walk.display_name(node), node.op_type, node.domain, opset, reason)


def _expanded(model: onnx.ModelProto, opsets: dict[str, int]) -> onnx.ModelProto:
    """The model with its own functions, and operators that are known by their definition alone, written out."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    # A definition may use operators that have definitions themselves.
    for _ in range(4):
        unknown = {
            (node.domain, node.op_type)
            for node in walk.nodes(model)
            if not _is_known(node, opsets) and _has_definition(node, opsets)
        }
        if not unknown:
            break
        try:
            model = inliner.inline_selected_functions(model, sorted(unknown), inline_schema_functions=True)
        except RuntimeError:
            # ONNX's own expansion fails on some optional inputs; the nodes are then reported as they are.
            break
        opsets |= {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    return model


def _is_known(node: onnx.NodeProto, opsets: dict[str, int]) -> bool:
    return find(node.domain, node.op_type, opsets.get(node.domain, 1)) is not None


def _has_definition(node: onnx.NodeProto, opsets: dict[str, int]) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    return bool(getattr(schema, "has_function", False) or getattr(schema, "has_context_dependent_function", False))


def _inferred_types(model: onnx.ModelProto) -> dict[tuple[Scope, str], onnx.TypeProto.Tensor]:
    """Element types and shapes of values by scope and name, as far as ONNX can infer them."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_large_values(model))
    except onnx.shape_inference.InferenceError:
        inferred = model
    return {
        (scope, value.name): value.type.tensor_type
        for scope, graph in scopes(inferred.graph)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }


def _without_large_values(model: onnx.ModelProto) -> onnx.ModelProto:
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    for field in ("input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    graph.initializer.extend(_declarations(model.graph.initializer))
    return skeleton


def _declarations(tensors: Sequence[onnx.TensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in tensors:
        large = len(tensor.raw_data) > _INFERENCE_BYTES or len(tensor.float_data) * 4 > _INFERENCE_BYTES
        yield onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims) if large else tensor
