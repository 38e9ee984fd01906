"""What decides how fast this machine is, beside its load."""

from __future__ import annotations

import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# x86 names its model; Arm gives the numbers of its maker and part.
_KEYS = frozenset({"model name", "CPU implementer", "CPU part"})


def machine_facts(threads: int) -> list[str]:
    """The CPU's model, the cores that this process may use, and its threads: two machines alike in these are alike.

    Args:
        threads: Of the runtime; 0 where it chooses.
    """
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [*cpu_model(text), f"{cores} cores", f"{threads} threads"]


def cpu_model(cpuinfo: str) -> list[str]:
    r"""What the text of a `/proc/cpuinfo` calls its processors, each kind once.

    >>> cpu_model("processor : 0\nmodel name : Fast CPU\n\nprocessor : 1\nmodel name : Fast CPU\n")
    ['model name: Fast CPU']
    """
    fields = (line.partition(":") for line in cpuinfo.splitlines())
    return sorted({f"{key.strip()}: {value.strip()}" for key, _, value in fields if key.strip() in _KEYS})
