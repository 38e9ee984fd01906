"""The files that a run leaves, and their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

from compression.errors import StepFailed
from compression.graph.architectures.companion import Companion
from compression.graph.limits import LARGEST_MESSAGE
from compression.graph.load import FLOAT_TYPES
from compression.graph.parameters import auxiliary
from compression.graph.skeleton import is_small, weight_bytes, without_weights
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


def write_any_size(path: Path, model: onnx.ModelProto) -> None:
    """Like `write_model`, but what exceeds one file has its weights in a second one beside it (see `data_file`)."""
    if weight_bytes(model) <= LARGEST_MESSAGE:
        write_model(path, model)
        return
    graph, data = without_weights(model), data_file(path)
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            if is_small(tensor):
                graph.graph.initializer.append(tensor)
                continue
            values = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
            outside = graph.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            outside.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": data.name, "offset": str(file.tell()), "length": str(len(values))}
            for key, value in place.items():
                outside.external_data.add(key=key, value=value)
            file.write(values)
    write_model(path, graph)


def data_file(path: Path) -> Path:
    """Where `write_any_size` puts the weights of a model that exceeds one file."""
    return path.with_name(f"{path.name}.data")


class SavedWeights(NamedTuple):
    """What `write_weights` saved.

    Attributes:
        tensors: How many; with none there is no file.
        gone: Keys of the uploaded `state_dict` whose tensors the graph holds in another form.
    """

    tensors: int
    gone: list[str]

    @property
    def notes(self) -> list[str]:
        """What the owner of the result should know."""
        if not self.tensors:
            return [f"The result holds no float weights, so there is no {WEIGHTS}."]
        if not self.gone:
            return []
        what = f"{len(self.gone)} keys of the uploaded state_dict, the first '{self.gone[0]}'"
        return [f"{WEIGHTS} lacks {what}: the result holds those tensors in another form."]


def write_weights(path: Path, model: onnx.ModelProto, companion: Companion | None = None) -> SavedWeights:
    """Save the weights that are floats by their names, without scales of quantized ones, and read them back.

    Args:
        path: The file to write.
        model: Whose weights.
        companion: For a model that came as a `state_dict`: the file then holds that `state_dict` with all its keys,
            so that it loads back into the module that it came from.

    Raises:
        StepFailed: `verification_failed` when the file does not hold what was saved.
    """
    skipped = auxiliary(model)
    wanted = frozenset(companion.initializers.values()) if companion else frozenset()
    arrays = {
        tensor.name: np.ascontiguousarray(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.name not in skipped and (tensor.name in wanted if companion else tensor.data_type in FLOAT_TYPES)
    }
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
