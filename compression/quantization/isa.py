"""What this machine's CPU can do with 8-bit integers."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# x86: vector widths, then dot products of 8-bit integers. Arm: the same.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx_vnni_int8",
    "amx_int8",
    "f16c",
    "avx512_fp16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "sve",
)
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_EXACT_ON_X86 = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


def cpu_facts() -> list[str]:
    """The architecture, then those instruction sets that decide about quantized models' speed and accuracy."""
    return list(_own_facts())


@functools.cache
def _own_facts() -> tuple[str, ...]:
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return tuple(facts(platform.machine(), text))


def facts(architecture: str, cpuinfo: str) -> list[str]:
    """Like `cpu_facts`, from the text of a `/proc/cpuinfo`.

    >>> facts("x86_64", "flags : fpu sse2 avx2 avx_vnni")
    ['x86_64', 'avx2', 'avx_vnni']
    """
    found: set[str] = set()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found.update(value.split())
            break
    return [architecture.lower(), *(flag for flag in _FLAGS if flag in found)]


def saturates(known: Iterable[str] | None = None) -> bool:
    """True where adding two products of a u8 activation and an s8 weight can exceed 16 bits.

    x86 before VNNI multiplies with VPMADDUBSW, whose pairwise sums saturate at 16 bits; weights of 7 bits cannot
    reach that. Arm and VNNI add in 32 bits.

    Args:
        known: What `cpu_facts` says; this machine's when absent.
    """
    have = frozenset(cpu_facts() if known is None else known)
    return bool(have & _X86) and not have & _EXACT_ON_X86
