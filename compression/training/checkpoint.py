"""What a restarted attempt needs to go on with a training, in one file that is never unpickled."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compression.cache import checkpoint_key
from compression.context import Context

_FILE = "checkpoint.safetensors"
_STATE = "state.json"
# Storing one costs the time of hashing and writing it; what is lost with a worker is at most this much work.
_SECONDS_BETWEEN = 60.0


class Checkpoints:
    """Keeps the newest state of one training where another attempt finds it.

    Args:
        context: Its `step_cache` keeps the files; without one nothing is kept.
        key: The step's key, or None to keep nothing.
    """

    def __init__(self, context: Context, key: str | None) -> None:
        self._cache = context.step_cache if key is not None else None
        self._key = checkpoint_key(key) if key is not None else ""
        self._folder = context.workdir / "checkpoints" / self._key[:16]
        self._count = 0
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that `save` was given last, by this attempt or an earlier one."""
        folder = self._cache.get(self._key) if self._cache is not None else None
        if folder is None:
            return None
        try:
            tensors = load_file(folder / _FILE)
            state = _joined(json.loads((folder / _STATE).read_bytes()), tensors)
        except (OSError, ValueError, TypeError, KeyError, SafetensorError):
            return None  # a damaged checkpoint costs the time of training again, and no more
        return state if isinstance(state, dict) else None

    def save_when_due(self, state: Mapping[str, Any]) -> None:
        """Keep a state of tensors, numbers and strings in dicts and lists, unless the last one is recent."""
        if self._cache is None or time.monotonic() - self._last < _SECONDS_BETWEEN:
            return
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        (folder / _STATE).write_text(json.dumps(_split(dict(state), tensors)))
        save_file(tensors, folder / _FILE)
        self._cache.put(self._key, folder)
        # The one before may still be on its way to the store.
        shutil.rmtree(self._folder / str(self._count - 2), ignore_errors=True)
        self._last = time.monotonic()


def _split(value: object, tensors: dict[str, torch.Tensor]) -> object:
    """The value with a reference in place of every tensor, which goes into `tensors`."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, Mapping):
        # Keys of optimizer states are numbers, which JSON does not have as keys.
        return {"$items": [[key, _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors) for item in value]
    return value


def _joined(value: object, tensors: Mapping[str, torch.Tensor]) -> Any:  # noqa: ANN401 - as JSON, plus tensors
    if isinstance(value, dict) and "$tensor" in value:
        return tensors[value["$tensor"]]
    if isinstance(value, dict):
        return {key: _joined(item, tensors) for key, item in value["$items"]}
    if isinstance(value, list):
        return [_joined(item, tensors) for item in value]
    return value
