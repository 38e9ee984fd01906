"""Loads and runs one model in a fresh process, and says what that took. See `memory`, which asks."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from compression.fresh_process import load_arrays, serve
from compression.runtime import DoesNotRun, Model

_RUNS = 3


def peak_bytes() -> int | None:
    """The most memory that this process ever held in RAM (VmHWM); None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def _forget_peak() -> None:
    """Let the peak begin anew at what is held now: imports may have held more for a moment."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    inputs = load_arrays(Path(request["inputs"]), request["names"])
    _forget_peak()
    before = peak_bytes()
    try:
        started = time.perf_counter()
        model = Model(Path(request["model"]), request["threads"])
        load_seconds = time.perf_counter() - started
        for _ in range(_RUNS):
            model.run(inputs)
    except DoesNotRun as error:
        return {"problem": str(error)}
    after = peak_bytes()
    return {
        "load_seconds": load_seconds,
        "peak_bytes": None if before is None or after is None else after - before,
    }


if __name__ == "__main__":
    serve(_answer)
