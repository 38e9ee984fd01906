"""Putting uploaded tensors into a module, every one of them and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from compression.errors import ModelRejected
from compression.graph.architectures.state_dict import Metadata

_NAMED = 6
# Counts training steps and takes no part in inference; files from before torch 0.4.1 lack it.
_COUNTER = "num_batches_tracked"


def fit(module: nn.Module, tensors: Mapping[str, torch.Tensor], metadata: Metadata | None) -> None:
    """Load a `state_dict` strictly. A tensor that two keys share may be given once, as safetensors do.

    Args:
        module: Gets the values; its own are all replaced.
        tensors: By key.
        metadata: Versions of the modules that saved them, where the file tells them.

    Raises:
        ModelRejected: `state_dict_mismatch`, naming keys that are missing or unknown and shapes that differ.
    """
    own = module.state_dict()
    _check_shapes(own, tensors)
    current: Metadata = getattr(own, "_metadata", {})
    # Modules rename keys of older versions of themselves. A file without versions may come from either side.
    attempts = [metadata] if metadata else [current, None]
    problems = [_load(module, tensors, versions) for versions in attempts]
    if all(problems):
        raise ModelRejected("state_dict_mismatch", f"The file does not fit the architecture: {problems[0]}.")
    _check_shared(module.state_dict(), tensors)


def _load(module: nn.Module, tensors: Mapping[str, torch.Tensor], versions: Metadata | None) -> str:
    state = OrderedDict(tensors)
    if versions is not None:
        state._metadata = versions  # type: ignore[attr-defined] # noqa: SLF001 - where `Module.state_dict` leaves it
    try:
        result = module.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        return " ".join(str(error).split())[:300].rstrip(".")
    own = module.state_dict()
    missing = set(result.missing_keys)
    given = {_place(tensor) for key, tensor in own.items() if key not in missing}
    missing = {key for key in missing if not key.endswith(_COUNTER) and _place(own[key]) not in given}
    return _in_words([key for key in own if key in missing], result.unexpected_keys, own)


def _in_words(missing: Sequence[str], unexpected: Sequence[str], own: Mapping[str, torch.Tensor]) -> str:
    parts = []
    if missing:
        parts.append(f"it lacks {_some(missing)}")
    if unexpected:
        parts.append(f"the architecture has no {_some(unexpected)}")
        prefix = unexpected[0].partition(".")[0] + "."
        if all(key.startswith(prefix) and key.removeprefix(prefix) in own for key in unexpected):
            parts.append(f"without '{prefix}' in front the keys would fit")
    return "; ".join(parts)


def _check_shapes(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    def differ(wrong: Callable[[torch.Tensor, torch.Tensor], bool]) -> list[str]:
        return [key for key, tensor in tensors.items() if key in own and wrong(tensor, own[key])]

    shapes = differ(lambda given, wanted: given.shape != wanted.shape)
    kinds = differ(lambda given, wanted: given.is_floating_point() != wanted.is_floating_point())
    told = [f"{key} is {list(tensors[key].shape)} and should be {list(own[key].shape)}" for key in shapes]
    told += [f"{key} holds {tensors[key].dtype} and should hold {own[key].dtype}" for key in kinds]
    if told:
        more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
        raise ModelRejected(
            "state_dict_mismatch", f"The file does not fit the architecture: {', '.join(told[:_NAMED])}{more}."
        )


def _check_shared(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Keys that are one tensor in the module must hold the same in the file."""
    first: dict[tuple[int, torch.Size], str] = {}
    for key, tensor in tensors.items():
        if key not in own or not tensor.numel():
            continue
        other = first.setdefault(_place(own[key]), key)
        if not torch.equal(tensors[other], tensor):
            raise ModelRejected(
                "state_dict_mismatch",
                f"'{other}' and '{key}' are one tensor in this architecture and differ in the file.",
            )


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def aliases(module: nn.Module) -> dict[str, str]:
    """For each key of the `state_dict` that shares its tensor with an earlier key, that earlier key."""
    first: dict[tuple[int, torch.Size], str] = {}
    found = {}
    for key, tensor in module.state_dict().items():
        if tensor.numel() and (other := first.setdefault(_place(tensor), key)) != key:
            found[key] = other
    return found


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
