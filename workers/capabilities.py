"""What this worker's machine can do. Nothing heavy is imported to find out."""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import PackageNotFoundError, version

from catalog.db import Json
from compression import providers
from compression.quantization.isa import cpu_facts
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
_NAME_BYTES = 128


def describe(sandbox: Sandbox, *, threads: int, gpu: bool) -> Json:
    """CPU flags, GPUs, providers, sandbox level, library versions and limits, as the catalog keeps them.

    Args:
        sandbox: How children are confined.
        threads: That each computes with; 0 for all that there are.
        gpu: Whether children see the graphics devices.
    """
    devices = cuda_devices()
    return {
        "isa": sorted(cpu_facts()),
        "gpus": devices,
        "providers": providers.installed(gpu=gpu and bool(devices)),
        "sandbox": sandbox.level,
        "versions": _versions(),
        "memory_limit_bytes": sandbox.memory_limit,
        "threads": threads or len(os.sched_getaffinity(0)),
    }


def cuda_devices() -> list[Json]:
    """Name and memory (bytes) of each CUDA device, asked of the driver itself; empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    devices: list[Json] = []
    for index in range(count.value):
        device = ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        memory = ctypes.c_size_t()
        if (
            driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDeviceGetName(name, _NAME_BYTES, device)
            or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        ):
            continue
        devices.append({"name": name.value.decode(errors="replace"), "memory_bytes": memory.value})
    return devices


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
