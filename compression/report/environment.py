"""Where and with what a run takes place."""

from __future__ import annotations

import os
import platform

from compression.cache import library_versions
from compression.quantization.isa import cpu_facts


def environment() -> dict[str, object]:
    """Interpreter, machine and libraries, ready for JSON."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": list(cpu_facts()),
        "cores": os.cpu_count(),
        "libraries": library_versions(),
    }
