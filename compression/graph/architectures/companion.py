"""What a `state_dict` holds beside the graph made from it: `state_dict.safetensors` next to `model.onnx`.

A graph has no place for counters of training steps, for heads that only train, or for a second key of the same tensor.
The file holds those tensors, and in its metadata all keys, so that results give back a complete `state_dict`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_FORMAT = "levity.state_dict/1"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Companion:
    """The rest of a `state_dict`.

    Attributes:
        initializers: For every key that the graph holds, the name of its initializer.
        permutations: For initializers whose axes were reordered, what `numpy.transpose` was told.
        rest: The other tensors.
    """

    initializers: Mapping[str, str]
    permutations: Mapping[str, tuple[int, ...]]
    rest: Mapping[str, Array]

    def complete(self, weights: Mapping[str, Array]) -> tuple[dict[str, Array], list[str]]:
        """The `state_dict` of a graph that a run has changed.

        Args:
            weights: Initializers of the graph by name.

        Returns:
            Tensors by key, and the keys whose initializers are gone: quantized or folded into others.
        """
        tensors = {key: self._back(weights[name], name) for key, name in self.initializers.items() if name in weights}
        gone = [key for key in self.initializers if key not in tensors]
        return tensors | dict(self.rest), gone

    def _back(self, array: Array, name: str) -> Array:
        order = self.permutations.get(name)
        if order is None or len(order) != array.ndim:
            return array
        return np.ascontiguousarray(array.transpose(np.argsort(order)))


class _Layout(BaseModel):
    initializers: dict[str, str]
    permutations: dict[str, tuple[int, ...]]


def write_companion(path: Path, companion: Companion) -> None:
    # One entry: safetensors write several in an order of their own.
    layout = {"initializers": companion.initializers, "permutations": companion.permutations}
    metadata = {_FORMAT: json.dumps(layout)}
    save_file({key: np.ascontiguousarray(value) for key, value in companion.rest.items()}, path, metadata)


def read_companion(path: Path) -> Companion | None:
    """The rest of the `state_dict` that a graph was made from; None where the file is missing or something else."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                return None
            layout = _Layout.model_validate_json(metadata[_FORMAT])
            rest = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping, though it looks like one
            return Companion(layout.initializers, layout.permutations, rest)
    except (FileNotFoundError, SafetensorError, ValidationError):
        return None


def beside(keys: Sequence[str], aliases: Mapping[str, str], initializers: frozenset[str]) -> dict[str, str]:
    """For each key of a `state_dict` that a graph holds, under its own name or that of another key, the name."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(aliases.get(key, key), []).append(key)
    held = {}
    for group in groups.values():
        name = next((key for key in group if key in initializers), None)
        held.update({key: name for key in group if name is not None})
    return {key: held[key] for key in keys if key in held}
