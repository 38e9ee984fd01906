"""Names that quantizers give to new tensors, kept apart from those that a model has already."""

from __future__ import annotations

import onnx

from compression.errors import StepFailed
from compression.graph import walk

# ONNX Runtime's quantizers derive new names from old ones by these endings, and look at no others that there are.
_ENDINGS = (
    "_quantized",
    "_scale",
    "_zero_point",
    "_quantized_scale",
    "_quantized_zero_point",
    "_QuantizeLinear_Input",
    "_QuantizeLinear_Output",
    "_DequantizeLinear_Input",
    "_DequantizeLinear_Output",
)


def make_room(model: onnx.ModelProto) -> None:
    """Rename, in place, tensors whose names a quantizer would give to something else.

    `w_scale` becomes `w_scale.float` where there is a tensor `w`. Names that nothing is derived from stay, and so do
    those of the model's inputs and outputs, which are not ours to change; see `check_unique`.
    """
    taken = {name for graph, _ in walk.graphs(model) for name in walk.defined(graph)}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    new: dict[str, str] = {}
    for name in sorted(taken - fixed):
        if any(base != name and base in taken for base in map(name.removesuffix, _ENDINGS)):
            new[name] = _free(f"{name}.float", taken)
            taken.add(new[name])
    if new:
        walk.rename_values(model, new)


def check_unique(model: onnx.ModelProto) -> None:
    """Refuse a quantized model in which two tensors of the main graph have one name: one would be taken for the other.

    Raises:
        StepFailed: `name_taken`.
    """
    seen: set[str] = set()
    for name in walk.defined(model.graph):
        if name in seen:
            raise name_taken(name)
        seen.add(name)


def name_taken(name: str) -> StepFailed:
    """The error for a name that a quantizer needs and the model has."""
    return StepFailed(
        "name_taken",
        f"The model has a tensor '{name}', which is what quantization calls a part of another; "
        "rename it, or keep the layers around it in float with 'exclude'.",
    )


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
