"""What all modes of quantization do before and after ONNX Runtime's quantizers do their part."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from compression.context import Context
from compression.errors import StepFailed
from compression.graph import walk
from compression.graph.parameters import QUANTIZED_OPERATORS
from compression.graph.skeleton import with_weights_as_inputs
from compression.graph.tensors import is_external
from compression.graph.weights import Weight, find_weights, read, select
from compression.quantization.names import check_unique, make_room, name_taken

# Rewrites that rename or merge nodes, after which patterns over the model's own names would no longer fit.
_RENAMING_OPTIMIZERS = ["MatMulAddFusion", "MatmulTransposeFusion", "MatMulScaleFusion", "GemmTransposeFusion"]
_OUT_OF_MEMORY = re.compile(r"bad_alloc|bad allocation|Failed to allocate memory")
_NODE_IN_MESSAGE = re.compile(r"(?:node with name |Name:)'([^']+)'|[Nn]ode \(([^)]+)\)")


def working_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each node of the main graph has a name of its own, and weights are weights alone.

    Quantizers tell nodes apart by name. A weight that a caller may replace cannot be quantized (before IR version 4 all
    weights had to be such inputs), and one that is listed among the computed values would be taken for one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name for tensor in copy.graph.initializer}
    for values in (copy.graph.input, copy.graph.value_info):
        kept = [value for value in values if value.name not in stored]
        if len(kept) < len(values):
            del values[:]
            values.extend(kept)
            copy.ir_version = max(copy.ir_version, 4)
    _name_nodes(copy.graph)
    make_room(copy)
    return copy


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give, in place, a name to each node that has none or shares it."""
    taken: set[str] = set()
    for node in graph.node:
        name = base = walk.display_name(node)
        count = 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        node.name = name
        taken.add(name)


def choose(
    model: onnx.ModelProto, include: Collection[str], exclude: Collection[str], dtypes: Collection[str]
) -> tuple[list[Weight], list[Weight]]:
    """The weights that a step acts on, all of them finite, and all others that it could act on.

    Args:
        model: A model whose nodes are named.
        include: Patterns of a spec.
        exclude: Patterns of a spec, which win.
        dtypes: Element types (NumPy names) that the mode can quantize.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name`, `no_weights` or `non_finite_weights`.
    """
    chosen, left = pick(model, include, exclude, dtypes)
    for _ in read(model, chosen):
        pass  # reading is what refuses NaN and infinity
    return chosen, left


def pick(
    model: onnx.ModelProto, include: Collection[str], exclude: Collection[str], dtypes: Collection[str]
) -> tuple[list[Weight], list[Weight]]:
    """Like `choose`, for a caller that finds out for itself what is not finite: no weight is read.

    Raises:
        StepFailed: `already_quantized`, `no_float_weights`, `unknown_name` or `no_weights`.
    """
    quantized = next((node for node in walk.nodes(model) if node.op_type in QUANTIZED_OPERATORS), None)
    if quantized is not None:
        raise StepFailed(
            "already_quantized",
            f"Node '{walk.display_name(quantized)}' ({quantized.op_type}) is quantized already; "
            "give the float model instead.",
        )
    weights = find_weights(model)
    able = [weight for weight in weights if weight.dtype in dtypes]
    if not able:
        held = ", ".join(sorted({weight.dtype for weight in weights})) or "none at all"
        raise StepFailed(
            "no_float_weights", f"The model has no weights of {' or '.join(sorted(dtypes))}; it has: {held}."
        )
    chosen = select(able, include, exclude)
    names = {weight.name for weight in chosen}
    return chosen, [weight for weight in able if weight.name not in names]


def nodes_of(weights: Collection[Weight], left: Collection[Weight]) -> list[str]:
    """Names of the nodes whose weights all take part: one weight that is left keeps its node in float."""
    untouched = {name for weight in left for name in weight.nodes}
    names = (name for weight in weights for name in weight.nodes if name not in untouched)
    return list(dict.fromkeys(names))


@contextlib.contextmanager
def temporary_folder(context: Context) -> Iterator[Path]:
    """A folder inside the run's own that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="quantize-", dir=context.workdir) as folder:
        yield Path(folder)


@contextlib.contextmanager
def runtime_failures(doing: str) -> Iterator[None]:
    """Turn what ONNX Runtime or its quantizers raise into `StepFailed` `unsupported_by_runtime`, or `MemoryError`."""
    # The quantizers log through the root logger's shortcuts, which would install a handler on stderr for good.
    silencer = logging.NullHandler()
    logging.getLogger().addHandler(silencer)
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, IndexError, AttributeError) as error:
        raise _failure(doing, error) from error
    except Exception as error:
        # ONNX Runtime's own exceptions (Fail, InvalidGraph, …) and ONNX's (InferenceError) share no base but Exception.
        if type(error).__module__.partition(".")[0] in ("onnx", "onnxruntime"):
            raise _failure(doing, error) from error
        raise
    finally:
        logging.getLogger().removeHandler(silencer)


def _failure(doing: str, error: Exception) -> StepFailed | MemoryError:
    """The error with the node that ONNX Runtime's message names; its own word for too little memory is no class."""
    text = " ".join(str(error).split()) or type(error).__name__
    if _OUT_OF_MEMORY.search(text):
        return MemoryError(text)
    found = _NODE_IN_MESSAGE.search(text)
    where = f" at node '{found.group(1) or found.group(2)}'" if found else ""
    return StepFailed("unsupported_by_runtime", f"ONNX Runtime fails{where} {doing}: {text[:400]}")


def session(
    source: bytes | Path,
    context: Context,
    *,
    entries: Mapping[str, str] | None = None,
    **settings: Any,  # noqa: ANN401 - ONNX Runtime is untyped
) -> Any:  # noqa: ANN401
    """An inference session on the CPU that prints nothing below errors.

    Args:
        source: Serialized model, or the path of one.
        context: Says how many threads to use.
        entries: Configuration entries by key.
        settings: Attributes of `onnxruntime.SessionOptions`; `disabled_optimizers` goes to the session itself.
    """
    import onnxruntime  # noqa: PLC0415 - half a second that only a run needs

    disabled = settings.pop("disabled_optimizers", None)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = context.threads
    for name, value in settings.items():
        setattr(options, name, value)
    for key, text in (entries or {}).items():
        options.add_session_config_entry(key, text)
    model = source if isinstance(source, bytes) else str(source)
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


def optimized(model: onnx.ModelProto, context: Context) -> onnx.ModelProto:
    """The model after ONNX Runtime's basic optimizations, with shapes: constants folded, batch norms in convolutions.

    Batch norms that stay separate would cost a pair of quantizers each and keep convolutions from running in
    integers. Nodes that remain keep their names; those that the runtime makes of others, such as HardSwish, get some.
    """
    import onnxruntime  # noqa: PLC0415 - half a second that only a run needs

    with temporary_folder(context) as folder, runtime_failures("loading the model"):
        path = folder / "optimized.onnx"
        session(
            model.SerializeToString(),
            context,
            graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            optimized_model_filepath=str(path),
            disabled_optimizers=_RENAMING_OPTIMIZERS,
        )
        result = onnx.load(path)
        _restore_names(result, model)
        _name_nodes(result.graph)
        return onnx.shape_inference.infer_shapes(result, data_prop=True)


def _restore_names(result: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Weights that took in a batch norm get back the names under which the user knows them."""
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    originals = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    before = {node.name: node for node in model.graph.node}
    for node in result.graph.node:
        twin = before.get(node.name)
        if twin is None or twin.op_type != node.op_type:
            continue
        for position, (was, name) in enumerate(zip(twin.input, node.input, strict=False)):
            changed = name in stored and name not in originals and was not in stored
            if changed and originals.get(was) == list(stored[name].dims):
                stored[was] = stored.pop(name)
                stored[was].name = was
                node.input[position] = was


def opset(model: onnx.ModelProto) -> int:
    """The operator set of ONNX that a model names; 0 where it names none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def at_least_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model in operator set `version`, or as it is where it has a later one.

    Raises:
        StepFailed: `unsupported_by_runtime` when an operator cannot be converted.
    """
    have = opset(model)
    if not have or have >= version:
        return model
    outside = [tensor for tensor in model.graph.initializer if is_external(tensor)]
    try:
        # The converter would look for what lies in files: it sees those tensors as inputs.
        given = with_weights_as_inputs(model, outside) if outside else model
        converted = onnx.version_converter.convert_version(given, version)
    except (RuntimeError, ValueError, TypeError) as error:
        raise StepFailed(
            "unsupported_by_runtime",
            f"The model has operator set {have}, which cannot be converted to the {version} that quantization needs: "
            f"{' '.join(str(error).split())[:300]}",
        ) from None
    if outside:
        names = {tensor.name for tensor in outside}
        inputs = [value for value in converted.graph.input if value.name not in names]
        del converted.graph.input[:]
        converted.graph.input.extend(inputs)
        converted.graph.initializer.extend(outside)
    return converted


def finished(result: onnx.ModelProto, original: onnx.ModelProto, context: Context) -> onnx.ModelProto:
    """The result in its final form: described like the original, and known to load.

    Raises:
        StepFailed: `name_taken`, or `unsupported_by_runtime` when ONNX Runtime cannot load it.
    """
    tidied(result, original)
    check_loads(result, context)
    return result


def tidied(result: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """The result, changed in place, in topological order, described like the original and without what nothing uses.

    Raises:
        StepFailed: `name_taken`.
    """
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(result, field, getattr(original, field))
    del result.metadata_props[:]
    result.metadata_props.extend(original.metadata_props)
    result.graph.name = original.graph.name
    # ONNX Runtime and its quantizers declare domains that nothing uses.
    used = {node.domain for node in walk.nodes(result)} | {entry.domain for entry in original.opset_import}
    kept = [entry for entry in result.opset_import if entry.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    _drop_unused_initializers(result)
    check_unique(result)
    sort(result.graph)
    return result


def check_loads(result: onnx.ModelProto, context: Context) -> None:
    """Let ONNX Runtime load a model.

    Raises:
        StepFailed: `unsupported_by_runtime` when it cannot.
    """
    with runtime_failures("loading the quantized model"):
        session(result.SerializeToString(), context)


def check_loads_mapped(path: Path, context: Context) -> None:
    """Let ONNX Runtime load a model whose weights lie beside its graph, and leave them there.

    Raises:
        StepFailed: `unsupported_by_runtime` when it cannot.
    """
    import onnxruntime  # noqa: PLC0415 - half a second that only a run needs

    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with runtime_failures("loading the quantized model"):
        session(path, context, entries={"session.disable_prepacking": "1"}, graph_optimization_level=level)


def sort(graph: onnx.GraphProto) -> None:
    """Put each node after those whose values it uses, values that its subgraphs capture included.

    Otherwise the order stays: quantizers put their nodes at the end, and their own sorting overlooks captured values.
    """
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting: list[set[int]] = []
    users: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        needed = {producers[name] for name in needs(node) if name in producers} - {index}
        waiting.append(needed)
        for producer in needed:
            users.setdefault(producer, []).append(index)
    ready = [index for index, needed in enumerate(waiting) if not needed]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users.get(index, ()):
            waiting[user].discard(index)
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(order) < len(graph.node):
        # Only a new tensor of an old name makes a circle.
        stuck = next(node for index, node in enumerate(graph.node) if waiting[index])
        raise name_taken(stuck.output[0])
    walk.set_nodes(graph, [graph.node[index] for index in order])


def needs(node: onnx.NodeProto) -> Iterator[str]:
    """Names of all values that a node or its subgraphs use, those of the subgraphs' own included."""
    yield from node.input
    for inner in walk.subgraphs(node):
        yield from (value.name for value in inner.output)
        for part in inner.node:
            yield from needs(part)


def _drop_unused_initializers(model: onnx.ModelProto) -> None:
    used = {name for node in walk.nodes(model) for name in node.input}
    used |= {value.name for graph, _ in walk.graphs(model) for value in graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def describe(chosen: Collection[Weight], result: onnx.ModelProto, otherwise: str) -> list[dict[str, object]]:
    """For each chosen weight how many scales it got, or why it was left; by the names that the quantizers give.

    Args:
        chosen: The weights that were to be quantized.
        result: What the quantizer made.
        otherwise: The reason to give for a weight that has no integer form in it.

    Raises:
        StepFailed: `no_weights` when not one was quantized.
    """
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    report: list[dict[str, object]] = []
    for weight in chosen:
        entry: dict[str, object] = {"name": weight.name, "shape": list(weight.shape), "nodes": list(weight.nodes)}
        if f"{weight.name}_quantized" in stored:
            scale = stored.get(f"{weight.name}_scale")
            entry["scales"] = 1 if scale is None else max(1, math.prod(scale.dims))
        else:
            entry["skipped"] = otherwise
        report.append(entry)
    check_some(report)
    return report


def check_some(report: Collection[dict[str, object]]) -> None:
    """Raise `StepFailed` `no_weights` when a report tells of no weight that was quantized."""
    if all("skipped" in entry for entry in report):
        listed = "; ".join(f"'{entry['name']}': {entry['skipped']}" for entry in list(report)[:3])
        raise StepFailed("no_weights", f"None of the chosen weights can be quantized in this mode. {listed}.")
