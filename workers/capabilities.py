"""What this worker's machine can do. Nothing heavy is imported to find out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from catalog.db import Json
from compression import providers
from compression.quantization.isa import cpu_facts
from workers.devices import Device
from workers.sandbox import Sandbox

_PACKAGES = (
    "levity",
    "celery",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "timm",
    "torch",
    "torchvision",
    "transformers",
)


def describe(sandbox: Sandbox, *, threads: int, devices: Sequence[Device] = ()) -> Json:
    """CPU flags, GPUs, providers, sandbox level, library versions and limits, as the catalog keeps them.

    Args:
        sandbox: How children are confined.
        threads: That each computes with; 0 for all that there are.
        devices: Those that children compute on.
    """
    return {
        "isa": sorted(cpu_facts()),
        "gpus": [{"name": device.name, "memory_bytes": device.memory_bytes} for device in devices],
        "providers": providers.installed(gpu=bool(devices)),
        "sandbox": sandbox.level,
        "reach": sandbox.reach.model_dump(),
        "versions": _versions(),
        "memory_limit_bytes": sandbox.memory_limit,
        "threads": threads or len(os.sched_getaffinity(0)),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
