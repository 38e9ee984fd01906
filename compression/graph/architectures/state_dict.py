"""Tensors by name from a file of unknown origin. To be called in a confined process only."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from compression.errors import ModelRejected
from compression.graph.architectures.formats import HOW_TO_SAVE, Format, check_weights
from compression.graph.architectures.libraries import quiet, reraise_out_of_memory, sentence
from compression.graph.limits import Limits

Metadata = dict[str, dict[str, Any]]

_MAX_KEY = 512
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_state_dict(path: Path, limits: Limits) -> tuple[dict[str, torch.Tensor], Metadata | None]:
    """Read safetensors or what `torch.save(model.state_dict(), path)` wrote; nothing else is unpickled.

    Returns:
        The tensors by their keys, on the CPU, and the versions of the modules that saved them, which only a torch
        file tells.

    Raises:
        ModelRejected: `not_a_state_dict`, `legacy_pickle`, `pickle_refused`, `truncated_model`, `archive_unsafe`,
            `model_too_large`, `too_many_tensors`, `torchscript_not_accepted`, `architecture_with_onnx` or
            `non_finite_weights`.
    """
    if check_weights(path, limits) is Format.TORCH_ZIP:
        value = _unpickle(path)
        return _checked(value, limits), _metadata(value)
    try:
        value = load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelRejected("not_a_state_dict", f"The safetensors file cannot be read: {sentence(error)}") from None
    return _checked(value, limits), None


def _unpickle(path: Path) -> object:
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = f" ({found[1][:200]})" if found else ""
        raise ModelRejected(
            "pickle_refused",
            f"The file holds Python objects{what} beside tensors, which are never loaded. " + HOW_TO_SAVE,
        ) from None
    except Exception as error:  # noqa: BLE001 - libraries raise what they like
        # A damaged archive makes torch raise whatever it stumbles over.
        reraise_out_of_memory(error)
        raise ModelRejected("not_a_state_dict", f"torch cannot read the file: {sentence(error)}") from None


def _metadata(value: object) -> Metadata | None:
    """The versions that `Module.state_dict` leaves on its result, as plain numbers by module."""
    found = getattr(value, "_metadata", None)
    if not isinstance(found, dict):
        return None
    return {
        str(prefix): {"version": entry["version"]}
        for prefix, entry in found.items()
        if isinstance(entry, dict) and isinstance(entry.get("version"), int)
    }


def _checked(value: object, limits: Limits) -> dict[str, torch.Tensor]:
    if not isinstance(value, dict):
        raise ModelRejected("not_a_state_dict", f"The file holds a {type(value).__name__}. {HOW_TO_SAVE}")
    if not value:
        raise ModelRejected("not_a_state_dict", "The file holds no tensors.")
    if len(value) > limits.max_initializers:
        raise ModelRejected("too_many_tensors", f"The file has more than {limits.max_initializers} tensors.")
    others = [str(key)[:100] for key, tensor in value.items() if not isinstance(tensor, torch.Tensor)]
    if others:
        kind = type(value.get(others[0])).__name__
        raise ModelRejected(
            "not_a_state_dict",
            f"Under '{others[0]}' the file holds a {kind} where a state_dict has tensors "
            f"({len(others)} of {len(value)} entries are none). {HOW_TO_SAVE}",
        )
    for key, tensor in value.items():
        _check_tensor(key, tensor)
    return {key: tensor.detach() for key, tensor in value.items()}


def _check_tensor(key: object, tensor: torch.Tensor) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY or not key.isprintable():
        raise ModelRejected("not_a_state_dict", f"{str(key)[:100]!r} is no key of a state_dict.")
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_quantized or tensor.device.type != "cpu":
        raise ModelRejected("not_a_state_dict", f"'{key}' is no plain tensor: sparse and quantized ones are not read.")
    # Strides may repeat one stored element any number of times.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelRejected("not_a_state_dict", f"'{key}' declares more elements than the file holds for it.")
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        raise ModelRejected("not_a_state_dict", f"'{key}' holds {tensor.dtype}, which no layer here computes with.")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ModelRejected("non_finite_weights", f"'{key}' holds NaN or infinity.")
