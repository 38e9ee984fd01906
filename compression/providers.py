"""Execution providers of ONNX Runtime: what there is on this machine, and which one a run measures on.

Processes that only load and run a model import this, so it imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
from pathlib import Path
from typing import Literal

from compression.errors import StepFailed

Provider = Literal["cpu", "cuda", "tensorrt"]
ProviderChoice = Literal["auto", "cpu", "cuda", "tensorrt"]
"""What a job can ask for."""

RUNTIME_NAMES: dict[Provider, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""As the runtime calls them: the provider, and those that take what it leaves."""


def choose(wanted: ProviderChoice, device: str) -> Provider:
    """The provider to measure on; `auto` is CUDA where the run's device is a GPU and the runtime can use it.

    Raises:
        StepFailed: `provider_missing`, naming those that there are.
    """
    if wanted == "auto":
        return "cuda" if device == "cuda" and "cuda" in available() else "cpu"
    found = available()
    if wanted not in found:
        raise StepFailed("provider_missing", missing(wanted, found), retryable=True)
    return wanted


def missing(wanted: str, found: tuple[str, ...] | list[str]) -> str:
    """What to tell a caller who asked for a provider that is not among `found`."""
    return f"ONNX Runtime cannot use the provider '{wanted}' here; there are: {', '.join(found)}."


def available() -> tuple[Provider, ...]:
    """Those on which a small model loads in this process: a runtime may be built for a GPU that is not there."""
    import onnxruntime  # noqa: PLC0415 - whoever only asks for `installed` imports nothing heavy

    built = set(onnxruntime.get_available_providers())
    return tuple(name for name, known in RUNTIME_NAMES.items() if known[0] in built and _starts(name))


def _starts(provider: Provider) -> bool:
    if provider == "cpu":
        return True
    from compression.runtime import DoesNotRun, start  # noqa: PLC0415 - the runtime, as above

    try:
        start(_smallest_model(), provider)
    except DoesNotRun:
        return False
    return True


def _smallest_model() -> bytes:
    """One ReLU of one number."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - only where there is a GPU

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def installed(*, gpu: bool) -> list[str]:
    """The providers whose libraries lie beside the runtime; nothing is imported or started to find out.

    Args:
        gpu: Whether this machine has a CUDA device, without which only the CPU counts.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "capi"
    names: list[Provider] = ["cuda", "tensorrt"]
    found = [name for name in names if any(folder.glob(f"*onnxruntime_providers_{name}.*"))]
    return ["cpu", *(name for name in found if name != "tensorrt" or _tensorrt_is_there())] if gpu else ["cpu"]


def _tensorrt_is_there() -> bool:
    """Whether the libraries are there that the provider of this name needs and no package of the runtime brings."""
    return importlib.util.find_spec("tensorrt_libs") is not None or ctypes.util.find_library("nvinfer") is not None
