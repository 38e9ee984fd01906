"""All hostile uploads."""

from __future__ import annotations

from functools import cache

from tests.hostile import archives, onnx_files, torch_files
from tests.hostile.case import Case


@cache
def cases() -> list[Case]:
    """Every case, each with a name of its own."""
    found = [*torch_files.cases(), *onnx_files.cases(), *archives.cases()]
    assert len({case.name for case in found}) == len(found)
    return found
