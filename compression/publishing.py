"""The files that a run leaves, and their hashes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from safetensors import safe_open
from safetensors.numpy import save_file

from compression.errors import StepFailed
from compression.graph.architectures.companion import Companion
from compression.graph.data_file import DataFile, graph_beside
from compression.graph.limits import LARGEST_MESSAGE
from compression.graph.load import FLOAT_TYPES
from compression.graph.parameters import auxiliary
from compression.graph.skeleton import is_small, weight_bytes, without_weights
from compression.graph.stored import place, values
from compression.graph.tensors import ExternalData, is_external, set_place, stored_bytes
from compression.result import ArtifactFile

MODEL = "model.onnx"
CODED = "model.levity"
WEIGHTS = "weights.safetensors"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
MANIFEST = "manifest.json"
_MEDIA_TYPES = {".json": "application/json", ".html": "text/html"}


def write_model(path: Path, model: onnx.ModelProto) -> None:
    """Write the bytes that `serialized` gives, and raise what it raises."""
    path.write_bytes(serialized(model))


def serialized(model: onnx.ModelProto) -> bytes:
    """A model as bytes, so that equal models give equal ones.

    Raises:
        StepFailed: `model_too_large` from 2 GiB on, where protobuf ends.
    """
    try:
        if weight_bytes(model) > LARGEST_MESSAGE:
            raise EncodeError  # noqa: TRY301 - before gigabytes are serialized in vain
        data: bytes = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        raise StepFailed("model_too_large", "The result exceeds the 2 GiB that an ONNX file can hold.") from None
    return data


def write_any_size(path: Path, model: onnx.ModelProto, *, own: Path | None = None) -> None:
    """Like `write_model`, but what exceeds one file has its weights in a second one beside it (see `data_file`).

    So does a model whose weights lie in files already (see `compression.graph.stored`).

    Args:
        path: Where to write.
        model: What to write.
        own: A folder whose files are the caller's own: weights that lie in one of them are moved, not copied, and the
            model says so.
    """
    data = data_file(path)
    files = {place(tensor)[0] for tensor in model.graph.initializer if is_external(tensor)}
    if not files and weight_bytes(model) <= LARGEST_MESSAGE:
        write_model(path, model)
        return
    if len(files) == 1:
        (file,) = files
        if own is not None and file.is_relative_to(own.absolute()):
            file.replace(data)
            for tensor in model.graph.initializer:
                if is_external(tensor):
                    set_place(tensor, data.absolute(), place(tensor)[1])
        else:
            shutil.copyfile(file, data)
        write_model(path, graph_beside(model, data))
        return
    graph = without_weights(model)
    with DataFile(data) as target:
        for tensor in model.graph.initializer:
            graph.graph.initializer.append(tensor if is_small(tensor) else target.put(tensor))
    write_model(path, graph_beside(graph, data))


def read_any_size(path: Path) -> onnx.ModelProto:
    """What `write_any_size` wrote; weights in a second file stay there.

    Raises:
        DecodeError, OSError, ModelRejected: The files are not what it wrote.
    """
    model: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    beside = ExternalData(path.parent)
    for tensor in model.graph.initializer:
        if is_external(tensor):
            beside.pin(tensor)
    return model


def data_file(path: Path) -> Path:
    """Where `write_any_size` puts the weights of a model that exceeds one file."""
    return path.with_name(f"{path.name}.data")


class SavedWeights(NamedTuple):
    """What `write_weights` saved.

    Attributes:
        tensors: How many; with none there is no file.
        gone: Keys of the uploaded `state_dict` whose tensors the graph holds in another form.
        too_large: Bytes of the weights where they are too many to be saved.
    """

    tensors: int
    gone: list[str]
    too_large: int = 0

    @property
    def notes(self) -> list[str]:
        """What the owner of the result should know."""
        if not self.tensors:
            if self.too_large:
                return [f"There is no {WEIGHTS}: its {self.too_large:,} bytes are more than may be held in memory."]
            return [f"The result holds no float weights, so there is no {WEIGHTS}."]
        if not self.gone:
            return []
        what = f"{len(self.gone)} keys of the uploaded state_dict, the first '{self.gone[0]}'"
        return [f"{WEIGHTS} lacks {what}: the result holds those tensors in another form."]


def write_weights(
    path: Path, model: onnx.ModelProto, companion: Companion | None = None, *, held_bytes: int = LARGEST_MESSAGE
) -> SavedWeights:
    """Save the weights that are floats by their names, without scales of quantized ones, and read them back.

    Args:
        path: The file to write.
        model: Whose weights.
        companion: For a model that came as a `state_dict`: the file then holds that `state_dict` with all its keys,
            so that it loads back into the module that it came from.
        held_bytes: Of weights that lie in files, at most so many are read into memory.

    Raises:
        StepFailed: `verification_failed` when the file does not hold what was saved.
    """
    skipped = auxiliary(model)
    wanted = frozenset(companion.initializers.values()) if companion else frozenset()
    chosen = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name not in skipped and (tensor.name in wanted if companion else tensor.data_type in FLOAT_TYPES)
    ]
    outside = sum(stored_bytes(tensor) for tensor in chosen if is_external(tensor))
    if outside > held_bytes:
        return SavedWeights(0, [], outside)
    arrays = {tensor.name: np.ascontiguousarray(values(tensor)) for tensor in chosen}
    if not arrays:
        return SavedWeights(0, [])
    gone: list[str] = []
    if companion is not None:
        arrays, gone = companion.complete(arrays)
    save_file(arrays, path)
    with safe_open(path, framework="numpy") as file:
        for name, array in arrays.items():
            # NumPy has no bfloat16 of its own, and safetensors none for NumPy when reading.
            if array.dtype.name != "bfloat16" and not np.array_equal(
                file.get_tensor(name), array, equal_nan=array.dtype.kind == "f"
            ):
                raise StepFailed("verification_failed", f"'{WEIGHTS}' does not give back '{name}'.")
    return SavedWeights(len(arrays), gone)


def describe(path: Path) -> ArtifactFile:
    """Name, hash, size and media type of a finished file."""
    return ArtifactFile(
        name=path.name,
        sha256=sha256_of(path),
        size=path.stat().st_size,
        media_type=_MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
    )


def sha256_of(*paths: Path) -> str:
    """SHA-256 of one file, or of the hashes of several in the order given."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
