"""The step that codes a model."""

from __future__ import annotations

import onnx

from compression import publishing
from compression.coding.encode import Encoded, encode
from compression.coding.spec import Encode
from compression.context import Context


def encode_model(model: onnx.ModelProto, spec: Encode, context: Context) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Leave the model in `context.workdir / "model.levity"`.

    Returns:
        The model as it is, and for each coded tensor its form, bits per element and their entropy.

    Raises:
        StepFailed: `model_too_large` from 2 GiB on.
    """
    encoded = encode(publishing.serialized(model), coder=spec.coder, between=context.check_cancelled)
    (context.workdir / publishing.CODED).write_bytes(encoded.data)
    return model, details(encoded)


def details(encoded: Encoded) -> dict[str, object]:
    """What is worth reporting of a coded file."""
    return {
        "bytes": len(encoded.data),
        "graph_bytes": encoded.graph_bytes,
        "table_bytes": encoded.table_bytes,
        "entropy_bytes": sum(stream.entropy_bits for stream in encoded.streams) / 8,
        "weights": [
            {
                "name": stream.name,
                "shape": list(stream.shape),
                "form": stream.form,
                "raw_bytes": stream.raw_bytes,
                "coded_bytes": stream.coded_bytes,
                "bits_per_element": 8 * stream.coded_bytes / stream.elements,
                "entropy_bits_per_element": stream.entropy_bits / stream.elements,
            }
            for stream in encoded.streams
        ],
    }
