"""CUDA devices: which there are, and which of them belong to this worker.

Each slot of a worker of the queue gpu has a device of its own for as long as the worker lives, and each child sees the
device of its slot alone: by `CUDA_VISIBLE_DEVICES`, and in the sandbox because no other device file is there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_NAME_BYTES = 128
_DEVICE_FILE = re.compile(r"nvidia\d+")
_INFORMATION = Path("/proc/driver/nvidia/gpus")
_FILES = Path("/dev")


class NoFreeDevice(Exception):
    """There are fewer devices than are needed, or other workers have them."""


@dataclass(frozen=True)
class Device:
    """A CUDA device.

    Attributes:
        identity: A name that no other device has.
        selector: What `CUDA_VISIBLE_DEVICES` calls it.
        name: Its maker's name for it.
        memory_bytes: Memory in bytes.
        minor: Number of its file `/dev/nvidiaN`; None where the driver does not tell.
    """

    identity: str
    selector: str
    name: str
    memory_bytes: int
    minor: int | None = None

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_bytes / 2**30:.1f} GiB"

    def hides(self, file: Path) -> bool:
        """Whether a file of `/dev` belongs to another device."""
        if self.minor is None or _DEVICE_FILE.fullmatch(file.name) is None:
            return False
        return file.name != f"nvidia{self.minor}"


def cuda_devices() -> list[Device]:
    """The devices that the driver shows this process; none without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    return devices_of(driver, os.environ.get("CUDA_VISIBLE_DEVICES"))


def devices_of(driver: Any, visible: str | None, information: Path = _INFORMATION) -> list[Device]:  # noqa: ANN401 - ctypes
    """The devices of a driver, in its order.

    Args:
        driver: The driver's library, as ctypes loads it.
        visible: `CUDA_VISIBLE_DEVICES`. Where it is set its names stay in use: the driver counts in their order, and
            does not itself know those of parts of a device (MIG).
        information: Where the driver tells of each device by its place on the bus.
    """
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    # The newer one tells parts of one device apart.
    get_identity = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid
    names = [name.strip() for name in visible.split(",")] if visible else []
    found: list[Device] = []
    for index in range(count.value):
        device = ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        memory = ctypes.c_size_t()
        place = ctypes.create_string_buffer(_NAME_BYTES)
        identity = (ctypes.c_ubyte * 16)()
        if (
            driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDeviceGetName(name, _NAME_BYTES, device)
            or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
            or get_identity(ctypes.byref(identity), device)
            or driver.cuDeviceGetPCIBusId(place, _NAME_BYTES, device)
        ):
            continue
        known = str(uuid.UUID(bytes=bytes(identity)))
        given = names[index : index + 1]
        selector = given[0] if given else "0" if count.value == 1 else f"GPU-{known}"
        minor = _minor(information, place.value.decode())
        found.append(Device(known, selector, name.value.decode(errors="replace"), memory.value, minor))
    return found


def _minor(information: Path, place: str) -> int | None:
    try:
        text = (information / place.lower() / "information").read_text()
    except OSError:
        return None
    told = re.search(r"Device Minor:\s*(\d+)", text)
    return int(told[1]) if told else None


def device_files(device: Device | None, folder: Path = _FILES) -> list[Path]:
    """Files that a process needs to compute on a device; on any, for None."""
    files = sorted(folder.glob("nvidia*"))
    return files if device is None else [file for file in files if not device.hides(file)]


class Reserved:
    """Devices of one worker, which no other worker with the same data folder takes.

    A lock for each rather than a list of them: locks end with the process, whatever ends it.

    Args:
        devices: Those that there are.
        count: How many are wanted.
        folder: For the locks.

    Raises:
        NoFreeDevice: Fewer are free.
    """

    def __init__(self, devices: Sequence[Device], count: int, folder: Path) -> None:
        self._lock_of_free = threading.Lock()
        self._locks: list[int] = []
        held: list[Device] = []
        for device in devices:
            if len(held) < count and self._lock(folder / f"{device.identity}.lock"):
                held.append(device)
        self.devices = tuple(held)
        self._free = deque(held)
        if len(held) < count:
            self.close()
            raise NoFreeDevice(
                f"{count} jobs at once need as many CUDA devices. The driver shows {len(devices)}, of which other "
                f"workers leave {len(held)}."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> Device | None:
        """A device that no child has, or None."""
        with self._lock_of_free:
            return self._free.popleft() if self._free else None

    def give_back(self, device: Device) -> None:
        """Its child has ended."""
        with self._lock_of_free:
            self._free.append(device)

    def close(self) -> None:
        """Leave the devices to others."""
        while self._locks:
            os.close(self._locks.pop())

    def _lock(self, path: Path) -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks.append(descriptor)
        return True
