"""The files that a run leaves, and their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto, numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

from compression.errors import StepFailed
from compression.graph.load import FLOAT_TYPES
from compression.graph.parameters import auxiliary
from compression.result import ArtifactFile

MODEL = "model.onnx"
WEIGHTS = "weights.safetensors"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
MANIFEST = "manifest.json"
_MEDIA_TYPES = {".json": "application/json", ".html": "text/html"}


def write_model(path: Path, model: onnx.ModelProto) -> None:
    """Serialize a model so that equal models give equal bytes.

    Raises:
        StepFailed: `model_too_large` from 2 GiB on, where protobuf ends.
    """
    try:
        data = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        raise StepFailed("model_too_large", "The result exceeds the 2 GiB that an ONNX file can hold.") from None
    path.write_bytes(data)


def write_weights(path: Path, model: onnx.ModelProto) -> int:
    """Save the weights that are floats by their names, without scales of quantized ones, and read them back.

    Returns:
        How many there are; with none no file is written.

    Raises:
        StepFailed: `verification_failed` when the file does not hold what was saved.
    """
    skipped = auxiliary(model)
    tensors = [
        tensor for tensor in model.graph.initializer if tensor.data_type in FLOAT_TYPES and tensor.name not in skipped
    ]
    if not tensors:
        return 0
    arrays = {tensor.name: np.ascontiguousarray(numpy_helper.to_array(tensor)) for tensor in tensors}
    save_file(arrays, path)
    with safe_open(path, framework="numpy") as file:
        for tensor in tensors:
            # NumPy has no bfloat16 of its own, and safetensors none for NumPy when reading.
            if tensor.data_type != TensorProto.BFLOAT16 and not np.array_equal(
                file.get_tensor(tensor.name), arrays[tensor.name], equal_nan=True
            ):
                raise StepFailed("verification_failed", f"'{WEIGHTS}' does not give back '{tensor.name}'.")
    return len(tensors)


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
