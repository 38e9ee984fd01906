"""From uploaded weights and their architecture to the ONNX file that jobs work on. Imports torch when it is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compression import publishing
from compression.errors import ModelRejected
from compression.graph.architectures.companion import Companion, beside, write_companion
from compression.graph.architectures.formats import check_weights
from compression.graph.architectures.orientation import store_transposed
from compression.graph.architectures.spec import (
    COMPANION,
    MODEL,
    Architecture,
    ModelSource,
    Timm,
    Torchvision,
    Transformers,
)
from compression.graph.inspect import summarize
from compression.graph.limits import DEFAULT_LIMITS, Limits
from compression.graph.load import load
from compression.runtime import DoesNotRun, Model
from compression.signature import ModelSummary

Array = npt.NDArray[Any]

_TOLERANCE = 1e-4
_COMPARED_BATCHES = (1, 3)


@dataclass(frozen=True)
class Converted:
    """What came of an upload.

    Attributes:
        summary: The graph, as any other.
        files: The graph and, beside it, the rest of the `state_dict`.
    """

    summary: ModelSummary
    files: tuple[Path, ...]


def convert(
    path: Path, source: ModelSource, out: Path, *, limits: Limits = DEFAULT_LIMITS, threads: int = 0
) -> Converted:
    """Build the architecture, load the weights strictly, export once, and compare the outputs of both.

    Args:
        path: safetensors, or a `.pt` file of `torch.save`. Its bytes decide, not its name.
        source: What it belongs to.
        out: A folder, made where it is missing, for `model.onnx` and `state_dict.safetensors`.
        limits: What a model may ask for.
        threads: Threads of torch and of the runtime; 0 lets them choose.

    Raises:
        ModelRejected: `torch_missing` (or another library's), `architecture_unknown`, `architecture_invalid`,
            `input_missing`, `state_dict_mismatch`, `export_failed`, `export_differs`, and the codes of
            `read_state_dict` and `compression.graph.load.load`.
    """
    check_weights(path, limits)
    _check_installed(source.architecture)
    # After the check: these import torch.
    import torch  # noqa: PLC0415

    from compression.graph.architectures import export, fit, registry, state_dict  # noqa: PLC0415

    if threads:
        torch.set_num_threads(threads)
    tensors, metadata = state_dict.read_state_dict(path, limits)
    module, inputs = registry.build(source.architecture, limits, source.inputs)
    fit.fit(module, tensors, metadata)
    del tensors
    network = export.Network(module, inputs, by_name=isinstance(source.architecture, Transformers))
    compared = [network.example(batch, seed=batch) for batch in _COMPARED_BATCHES]
    expected = [network.run(arrays) for arrays in compared]
    out.mkdir(parents=True, exist_ok=True)
    graph = out / MODEL
    exported = network.export(list(expected[0]))
    permutations = store_transposed(exported, module.state_dict().keys())
    publishing.write_model(graph, exported)
    loaded = load(graph, limits=limits)
    publishing.write_model(graph, loaded.model)
    _compare(graph, compared, expected, threads)
    state = module.state_dict()
    held = beside(list(state), fit.aliases(module), frozenset(one.name for one in loaded.model.graph.initializer))
    rest = {key: tensor.detach().numpy() for key, tensor in state.items() if key not in held}
    write_companion(out / COMPANION, Companion(held, permutations, rest))
    return Converted(summarize(loaded.model, graph.stat().st_size, 0), (graph, out / COMPANION))


def _check_installed(architecture: Architecture) -> None:
    libraries = {"torch": "train", "onnxscript": "train"}
    match architecture:
        case Torchvision():
            libraries["torchvision"] = "train"
        case Timm():
            libraries["timm"] = "architectures"
        case Transformers():
            libraries["transformers"] = "architectures"
        case _:
            pass
    for library, extra in libraries.items():
        if importlib.util.find_spec(library) is None:
            raise ModelRejected(
                f"{library}_missing",
                f"The worker that inspects models has no {library}, which this architecture needs: "
                f"install it there with pip install 'levity[{extra}]', or upload an ONNX file.",
            )


def _compare(graph: Path, inputs: list[dict[str, Array]], expected: list[dict[str, Array]], threads: int) -> None:
    """Refuse a graph that does not compute what the module does."""
    try:
        model = Model(graph, threads)
        for arrays, wanted in zip(inputs, expected, strict=True):
            _compare_outputs(model.tensors(arrays), wanted)
    except DoesNotRun as error:
        raise ModelRejected("export_differs", f"ONNX Runtime does not run the exported graph: {error}") from None


def _compare_outputs(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    for name, wanted in expected.items():
        output = found.get(name)
        if output is None or output.shape != wanted.shape:
            shape = "missing" if output is None else f"of shape {list(output.shape)}"
            raise ModelRejected(
                "export_differs", f"In the exported graph output '{name}' is {shape}; torch gives {list(wanted.shape)}."
            )
        ours, theirs = output.astype(np.float64), wanted.astype(np.float64)
        if not np.isfinite(theirs).all():
            raise ModelRejected(
                "non_finite_outputs", f"With these weights output '{name}' is NaN or infinite for ordinary inputs."
            )
        largest = float(np.abs(ours - theirs).max(initial=0))
        scale = float(np.abs(theirs).max(initial=0))
        if not largest <= _TOLERANCE * scale:
            raise ModelRejected(
                "export_differs",
                f"Output '{name}' of the exported graph differs from torch's by up to {largest:.3g}, "
                f"where its values go up to {scale:.3g}.",
            )
