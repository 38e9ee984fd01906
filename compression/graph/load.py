"""From bytes of unknown origin to one canonical model, or a clear refusal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from compression.coding.decode import decode
from compression.errors import ModelRejected
from compression.graph import functions, shapes, walk
from compression.graph.architectures.formats import LEVITY_MAGIC, holds_weights
from compression.graph.limits import ALLOWED_DOMAINS, DEFAULT_LIMITS, LARGEST_MESSAGE, SMALLEST_OUTSIDE, Limits
from compression.graph.names import check_names
from compression.graph.skeleton import outside_bytes, weight_bytes, with_weights_as_inputs
from compression.graph.tensors import ExternalData, check_declared, element_count, is_external, is_pinned, stored_bytes
from compression.graph.wire import CutShort, NotWireFormat, count_parts, outline

_MANY_PARTS_ABOVE = 2**20

_ELEMENT_TYPES = frozenset(TensorProto.DataType.values())
FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


@dataclass(frozen=True)
class LoadedModel:
    """A canonical model and what its upload weighed.

    Attributes:
        model: No functions, weights as named initializers. Complete in itself, save for tensors that were to stay in
            files of external data: those name them by their absolute paths (see `compression.graph.stored`).
        file_bytes: Bytes of the upload, external data included.
        external_data_bytes: Bytes of the files beside the graph.
        external_files: Names of those files, sorted.
    """

    model: onnx.ModelProto
    file_bytes: int
    external_data_bytes: int
    external_files: tuple[str, ...]


def load_model(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """Read, check and normalize an ONNX file; see `load`."""
    return load(path, limits=limits).model


def load(path: Path, *, limits: Limits = DEFAULT_LIMITS, held_bytes: int | None = None) -> LoadedModel:
    """Read an ONNX file and the external data in its folder, check both, and bring them into canonical form.

    A `.levity` file is decoded first.

    Names, opsets, IR version, dynamic axes and metadata stay as they are. External data moves into the model,
    functions are inlined, and weights that an exporter left in `Constant` nodes become initializers of the same name.

    Args:
        path: The file.
        limits: What is accepted.
        held_bytes: External data of more bytes stays in its files, save for small tensors; None: all is read.

    Raises:
        ModelRejected: `not_onnx`, `truncated_model`, `model_too_large`, `too_many_nodes`, `too_many_tensors`,
            `architecture_missing`, `subgraphs_too_deep`, `operator_domain_not_allowed`, `external_data_missing`,
            `external_data_unsafe`, `external_data_invalid`, `invalid_model`, or a code of
            `compression.coding.decode.decode`.
    """
    try:
        model, graph_bytes = _parse(path, limits)
        _check_structure(model, limits)
        check_names(model)
        external = ExternalData(path.parent)
        outside = _check_tensors(model, external, graph_bytes, limits)
        _check_domains(model)
        functions.check_expansion(model, limits)
        leave = held_bytes is not None and outside > held_bytes
        if not leave and outside > limits.max_held_bytes:
            raise ModelRejected("model_too_large", f"The model's data has more than {limits.max_held_bytes} bytes.")
        _canonicalize(model, external, leave=leave)
        _check_structure(model, limits)
    except MemoryError:
        raise ModelRejected("model_too_large", "The model needs more memory than this process may use.") from None
    _check_signature(model.graph)
    _check_meaning(model, limits)
    return LoadedModel(model, graph_bytes + external.total_bytes, external.total_bytes, external.files)


def _parse(path: Path, limits: Limits) -> tuple[onnx.ModelProto, int]:
    size = path.stat().st_size
    if size > limits.max_bytes:
        raise ModelRejected("model_too_large", f"The file has {size} bytes; at most {limits.max_bytes} are accepted.")
    if holds_weights(path):
        raise ModelRejected(
            "architecture_missing",
            "The file holds weights and no graph: name the network that they belong to, such as "
            '"architecture": {"name": "torchvision:resnet18", "arguments": {"num_classes": 10}}, or list its layers.',
        )
    data = path.read_bytes()
    if data.startswith(LEVITY_MAGIC):
        data = decode(data, max_bytes=limits.max_bytes)
        size = len(data)
    try:
        counted = outline(data, stop_at=max(limits.max_nodes, limits.max_initializers))
    except NotWireFormat:
        raise ModelRejected("not_onnx", "The bytes are not an ONNX model.") from None
    except CutShort:
        raise ModelRejected("truncated_model", "The file begins like an ONNX model and ends before it does.") from None
    if not data:
        raise ModelRejected("not_onnx", "The file is empty.")
    _check_counts(counted.nodes, counted.initializers, limits)
    _check_parts(data, limits)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise ModelRejected("not_onnx", "The bytes are not an ONNX model: its parts cannot be decoded.") from None
    if not counted.has_graph or not model.opset_import:
        # Exporters write the graph and then the operator sets, so either is missing where a file was cut between them.
        missing = "graph" if not counted.has_graph else "operator set"
        code = "truncated_model" if model.ir_version else "not_onnx"
        raise ModelRejected(code, f"The file names no {missing}: it is incomplete, or no ONNX model.")
    return model, size


def _check_parts(data: bytes, limits: Limits) -> None:
    """Refuse what would take far more memory than the file has bytes; what is small cannot."""
    if len(data) <= _MANY_PARTS_ABOVE:
        return
    try:
        parts = count_parts(data, stop_at=limits.max_parts)
    except NotWireFormat:
        raise ModelRejected("not_onnx", "The bytes are not an ONNX model: its parts cannot be decoded.") from None
    if parts > limits.max_parts:
        raise ModelRejected("too_many_nodes", f"The file consists of more than {limits.max_parts} parts.")


def _check_counts(nodes: int, initializers: int, limits: Limits) -> None:
    if nodes > limits.max_nodes:
        raise ModelRejected("too_many_nodes", f"The graph has more than {limits.max_nodes} nodes.")
    if initializers > limits.max_initializers:
        raise ModelRejected("too_many_tensors", f"The graph has more than {limits.max_initializers} stored tensors.")


def _check_structure(model: onnx.ModelProto, limits: Limits) -> None:
    nodes = initializers = 0
    for graph, depth in walk.graphs(model):
        if depth > limits.max_depth:
            raise ModelRejected("subgraphs_too_deep", f"Subgraphs nest more than {limits.max_depth} levels deep.")
        nodes += len(graph.node)
        initializers += len(graph.initializer) + len(graph.sparse_initializer)
        _check_counts(nodes, initializers, limits)
    if not model.graph.node:
        raise ModelRejected("invalid_model", "The graph has no nodes.")


def _check_tensors(model: onnx.ModelProto, external: ExternalData, graph_bytes: int, limits: Limits) -> int:
    """Bytes of all tensors in external data."""
    for sparse in walk.sparse_tensors(model):
        # Runtimes fill them up.
        if any(length < 0 for length in sparse.dims) or 8 * math.prod(sparse.dims) > limits.max_activation_bytes:
            raise ModelRejected(
                "model_too_large", f"Sparse tensor '{sparse.values.name}' has {list(sparse.dims)} places."
            )
    total = graph_bytes
    for tensor in walk.tensors(model):
        check_declared(tensor)
        if is_external(tensor):
            external.region(tensor)
            total += stored_bytes(tensor)
        if total > limits.max_total_bytes:
            raise ModelRejected(
                "model_too_large", f"The model and its data have more than {limits.max_total_bytes} bytes."
            )
    return total - graph_bytes


def _check_domains(model: onnx.ModelProto) -> None:
    """Only operators that the runtime implements itself, or that the model defines by such operators."""
    own = {(function.domain, function.name) for function in model.functions}
    for node in walk.nodes(model):
        if node.domain not in ALLOWED_DOMAINS and (node.domain, node.op_type) not in own:
            raise ModelRejected(
                "operator_domain_not_allowed",
                f"Node '{walk.display_name(node)}' uses '{node.domain}::{node.op_type}'; "
                "operators outside ai.onnx, ai.onnx.ml and com.microsoft need code that is not accepted.",
            )


def _canonicalize(model: onnx.ModelProto, external: ExternalData, *, leave: bool) -> None:
    for tensor in walk.tensors(model):
        if is_external(tensor) and not (leave and stored_bytes(tensor) >= SMALLEST_OUTSIDE):
            external.read_into(tensor)
    model.ClearField("training_info")
    if model.functions:
        functions.inline(model)
    _constants_to_initializers(model)
    for tensor in model.graph.initializer:
        if is_external(tensor):
            external.pin(tensor)
    for tensor in walk.tensors(model):
        # Subgraphs and attributes hold theirs themselves: steps look for weights among the initializers.
        if is_external(tensor) and not is_pinned(tensor):
            external.read_into(tensor)


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    """Weights in `Constant` nodes of the main graph become initializers named like the node's output."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        tensor = _constant_weight(node)
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
            continue
        weight = graph.initializer.add()
        weight.CopyFrom(tensor)
        weight.name = node.output[0]
        if model.ir_version < 4:
            # Before IR 4 an initializer had to be an input too.
            graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    if len(kept) < len(graph.node):
        _replace_nodes(graph, kept)


def _replace_nodes(graph: onnx.GraphProto, kept: Iterable[onnx.NodeProto]) -> None:
    copies = []
    for node in kept:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    graph.ClearField("node")
    graph.node.extend(copies)


def _constant_weight(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            tensor: onnx.TensorProto = attribute.t
            if tensor.data_type in FLOAT_TYPES and element_count(tensor) > 1:
                return tensor
    return None


def _check_signature(graph: onnx.GraphProto) -> None:
    """Inputs and outputs must say what they hold: nobody could feed or read them otherwise."""
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type.elem_type
        tensor = value.type.WhichOneof("value") == "tensor_type"
        if tensor and (kind not in _ELEMENT_TYPES or kind == TensorProto.UNDEFINED):
            raise ModelRejected("invalid_model", f"Input or output '{value.name}' has the unknown element type {kind}.")


def _check_meaning(model: onnx.ModelProto, limits: Limits) -> None:
    """The specification's own checks, and the sizes of what the graph computes."""
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise ModelRejected(
                "invalid_model", f"The model is written for operator set {entry.version}; up to {newest} are known."
            )
    try:
        fits = weight_bytes(model) <= LARGEST_MESSAGE and not outside_bytes(model)
        # What tensors declare is checked already (`check_declared`), so the checker misses nothing.
        onnx.checker.check_model(model if fits else with_weights_as_inputs(model))
        inferred = shapes.infer(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelRejected("invalid_model", f"The ONNX checker refuses the model: {_short(error)}") from None
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        # The checker's C++ lets other exceptions through on inputs that it did not foresee.
        raise ModelRejected("invalid_model", f"The model cannot be checked: {_short(error)}") from None
    for name, known in inferred.items():
        if known.onnx_type not in _ELEMENT_TYPES:
            raise ModelRejected("invalid_model", f"'{name}' has the unknown element type {known.onnx_type}.")
        elements = known.elements
        if elements is not None and elements * known.itemsize > limits.max_activation_bytes:
            raise ModelRejected(
                "model_too_large",
                f"The model computes '{name}' of {elements * known.itemsize} bytes; "
                f"at most {limits.max_activation_bytes} are accepted.",
            )


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
