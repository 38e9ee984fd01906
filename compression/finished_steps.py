"""What a finished step leaves, kept for later runs that begin alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, ValidationError

from compression import publishing
from compression.context import StepCache
from compression.errors import ModelRejected


class Done(BaseModel):
    """A finished step as it is kept in the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    seconds: float
    details: dict[str, object]


def resume(model: onnx.ModelProto, cache: StepCache, keys: Sequence[str]) -> tuple[onnx.ModelProto, list[Done]]:
    """What the longest finished prefix of the steps left; the model as it is where nothing is finished."""
    for count in range(len(keys), 0, -1):
        folder = cache.get(keys[count - 1])
        if folder is None:
            continue
        try:
            details = json.loads((folder / "details.json").read_bytes())
            done = [Done.model_validate(one) for one in details]
            kept = publishing.read_any_size(folder / publishing.MODEL)
        except (OSError, ValueError, TypeError, DecodeError, ValidationError, ModelRejected):
            continue  # a damaged entry costs the time of computing the step again, and no more
        if len(done) == count:
            return kept, done
    return model, []


def keep(cache: StepCache, key: str, folder: Path, model: onnx.ModelProto, done: Sequence[Done]) -> None:
    """Leave a step's result and what is known of all steps up to it in a folder, and hand that over."""
    folder.mkdir(parents=True, exist_ok=True)
    publishing.write_any_size(folder / publishing.MODEL, model)
    (folder / "details.json").write_text(json.dumps([one.model_dump(mode="json") for one in done]))
    cache.put(key, folder)
