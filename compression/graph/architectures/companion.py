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
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_FORMAT = "levity.state_dict/1"

_NAMES = TypeAdapter(dict[str, str])

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Companion:
    """The rest of a `state_dict`.

    Attributes:
        initializers: For every key that the graph holds, the name of its initializer.
        rest: The other tensors.
    """

    initializers: Mapping[str, str]
    rest: Mapping[str, Array]

    def complete(self, weights: Mapping[str, Array]) -> tuple[dict[str, Array], list[str]]:
        """The `state_dict` of a graph that a run has changed.

        Args:
            weights: Initializers of the graph by name.

        Returns:
            Tensors by key, and the keys whose initializers are gone: quantized or folded into others.
        """
        tensors = {key: weights[name] for key, name in self.initializers.items() if name in weights}
        gone = [key for key in self.initializers if key not in tensors]
        return tensors | dict(self.rest), gone


def write_companion(path: Path, companion: Companion) -> None:
    # One entry: safetensors write several in an order of their own.
    metadata = {_FORMAT: json.dumps(companion.initializers)}
    save_file({key: np.ascontiguousarray(value) for key, value in companion.rest.items()}, path, metadata)


def read_companion(path: Path) -> Companion | None:
    """The rest of the `state_dict` that a graph was made from; None where the file is missing or something else."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                return None
            initializers = _NAMES.validate_json(metadata[_FORMAT])
            return Companion(initializers, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
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
