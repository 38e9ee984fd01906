"""Names for finished steps, so that no step is computed twice on the same input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from compression.spec import PipelineSpec

# Packages whose release may change the bytes that a step produces.
_RELEVANT = ("levity", "numpy", "onnx", "onnxruntime", "torch")


def library_versions() -> dict[str, str]:
    """Versions of the installed packages that influence results; nothing is imported to find them."""
    found: dict[str, str] = {}
    for name in _RELEVANT:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checkpoint_key(step_key: str) -> str:
    """The key under which an unfinished step keeps how far it got."""
    return hashlib.sha256(f"checkpoint {step_key}".encode()).hexdigest()


def step_keys(
    model_sha256: str,
    data_sha256: Mapping[str, str],
    spec: PipelineSpec,
    host: Iterable[str] = (),
    *,
    machine: Iterable[str] = (),
    student_sha256: str | None = None,
) -> list[str]:
    """One key (64 hex digits) for each step of `spec`, in order.

    A key covers the model, the data, the seed, the library versions, what the host contributes and all steps up to
    and including its own: two jobs that begin alike share the keys of their common prefix. From the first step on that
    measures time (`StepSpec.depends_on_machine`), it covers the machine too.

    Args:
        model_sha256: Hash of the model as uploaded.
        data_sha256: Hash of each dataset by its role.
        spec: The pipeline; its `benchmark` part has no influence.
        host: Facts of this machine that steps look at, such as CPU flags.
        machine: Facts that decide about speed (see `compression.benchmarking.machine`).
        student_sha256: Hash of the second model, where there is one.
    """
    digest = hashlib.sha256()

    def mix(value: object) -> None:
        digest.update(json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n")

    mix(["levity-step-1", model_sha256, dict(data_sha256), spec.seed, library_versions(), sorted(host)])
    if student_sha256 is not None:
        mix(["student", student_sha256])
    keys = []
    for step in spec.steps:
        if step.depends_on_machine:
            mix(["machine", *machine])
        mix(step.model_dump(mode="json"))
        keys.append(digest.copy().hexdigest())
    return keys
