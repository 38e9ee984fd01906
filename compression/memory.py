"""How much memory a run may count on."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_LIBRARIES = 1 << 30
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def address_space() -> int | None:
    """Bytes that this process may map, files included; None where nothing limits them."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def can_map(size: int) -> bool:
    """Whether a process may map files of so many bytes beside what its libraries need."""
    limit = address_space()
    return limit is None or size + _LIBRARIES <= limit


def memory_limit() -> int:
    """Bytes of the machine's memory, or of what the process or its container is limited to."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [limit for limit in (address_space(), _container_limit()) if limit is not None]
    return min(limits)


def _container_limit() -> int | None:
    try:
        text = _CONTAINER.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
