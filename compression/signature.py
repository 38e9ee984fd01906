"""Descriptions of models and datasets, and whether one fits the other. No heavy imports."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

Dimension = int | str | None
"""A fixed length, the name of a dynamic axis, or None where the model says nothing."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TensorSpec(_Record):
    """Name, element type and shape of an input or output."""

    name: str
    dtype: str
    """NumPy name of the element type: `float32`, `int64`, `uint8`, …"""
    shape: tuple[Dimension, ...] | None
    """Lengths of the axes, the batch axis included; None where the rank itself is unknown."""


class ModelSummary(_Record):
    """What Levity knows of a model after looking into it."""

    format: Literal["onnx"]
    ir_version: int
    opsets: dict[str, int]
    """Operator set version by domain; the default domain is `ai.onnx`."""
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    """How often each operator occurs, subgraphs included, by its name (`domain::name` outside `ai.onnx`)."""
    nodes: int
    parameters: int
    """Elements of all weights."""
    nonzero_parameters: int
    parameter_bytes: int
    """Bytes of all weights as stored in the graph."""
    macs: int | None
    """Multiply-accumulate operations for one sample; None where shapes are not known well enough."""
    file_bytes: int
    """Bytes of the upload, external data included."""
    external_data_bytes: int
    """Bytes that came in files of their own beside the graph."""
    quantized: bool
    """True when the graph holds quantized operators already."""


class DatasetSummary(_Record):
    """What Levity knows of a dataset after looking into it."""

    format: Literal["safetensors", "npz", "images"]
    samples: int
    arrays: tuple[TensorSpec, ...]
    """Input arrays; the first axis is the sample. For images one array, after preprocessing, named ``."""
    has_labels: bool
    classes: int | None
    """Highest label + 1, or the number of class folders; None without labels."""
    class_names: tuple[str, ...] | None = None
    targets: TensorSpec | None = None
    """What the model should give for each sample where that is no class (array `targets`); None without."""
    bytes: int


_LARGEST_SUMMARY = 4 << 20


def unfit(summary: ModelSummary | DatasetSummary) -> str | None:
    """Say why a description cannot be kept and shown; None when it can.

    Names come from the upload, and there are as many as it likes. Databases do not take every character.
    """
    text = json.dumps(summary.model_dump(mode="json"), ensure_ascii=False)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "A name in it is no valid Unicode."
    if "\\u0000" in text.replace("\\\\", ""):
        return "A name in it holds the character U+0000."
    if size > _LARGEST_SUMMARY:
        return f"Its names and shapes alone take {size} bytes; at most {_LARGEST_SUMMARY} are accepted."
    return None


def mismatches(model: ModelSummary, data: DatasetSummary) -> list[str]:
    """Say why `data` cannot be fed to `model`; an empty list means that it can.

    A dataset with a single array fits a model with a single input whatever the two are called; otherwise names
    must be equal. Lengths are compared axis by axis where the model fixes them, except the batch axis.
    """
    arrays = {array.name: array for array in data.arrays}
    problems: list[str] = []
    single = len(model.inputs) == 1 and len(data.arrays) == 1
    for wanted in model.inputs:
        array = data.arrays[0] if single else arrays.get(wanted.name)
        if array is None:
            have = ", ".join(sorted(arrays)) or "none"
            problems.append(f"input '{wanted.name}' has no array of that name (the dataset has: {have})")
            continue
        if array.dtype != wanted.dtype:
            problems.append(f"input '{wanted.name}' takes {wanted.dtype}, the dataset holds {array.dtype}")
        if wanted.shape is None or array.shape is None:
            continue
        if len(array.shape) != len(wanted.shape):
            problems.append(
                f"input '{wanted.name}' has {len(wanted.shape)} axes, the dataset's array has {len(array.shape)}"
            )
            continue
        for axis, (theirs, ours) in enumerate(zip(array.shape, wanted.shape, strict=True)):
            if axis > 0 and isinstance(ours, int) and isinstance(theirs, int) and theirs != ours:
                problems.append(f"axis {axis} of input '{wanted.name}' is {ours}, the dataset's is {theirs}")
    if not single:
        extra = sorted(set(arrays) - {wanted.name for wanted in model.inputs})
        problems.extend(f"array '{name}' is no input of the model" for name in extra)
    return problems


def label_problems(model: ModelSummary, data: DatasetSummary) -> list[str]:
    """Say why the labels of `data` cannot be answers of `model`; an empty list means that they can.

    A model is taken for a classifier by its first output, (batch, classes). A single class is the score of a binary
    classifier, which tells two apart.
    """
    shape = model.outputs[0].shape if model.outputs else None
    if data.classes is None or shape is None or len(shape) != 2:
        return []
    classes = shape[1]
    if not isinstance(classes, int) or data.classes <= max(classes, 2):
        return []
    what = f"{data.classes} class folders" if data.class_names else f"labels up to {data.classes - 1}"
    return [f"the dataset has {what}; the model's output '{model.outputs[0].name}' has {classes} classes"]
