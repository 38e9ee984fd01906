"""Loads and runs one model in a fresh process, and says what that took. See `memory`, which asks."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from compression.fresh_process import load_arrays, serve
from compression.runtime import DoesNotRun, Model


def peak_bytes() -> int | None:
    """The most memory that this process ever held in RAM; None where the system does not say."""
    return _status("VmHWM")


def held_bytes() -> int | None:
    """The memory that this process holds in RAM now; None where the system does not say."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:")), None)


def _forget_peak() -> None:
    """Let the peak begin anew at what is held now: imports may have held more for a moment."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    inputs = load_arrays(Path(request["inputs"]), request["names"])
    _forget_peak()
    before, held = peak_bytes(), held_bytes()
    try:
        started = time.perf_counter()
        model = Model(Path(request["model"]), request["threads"], provider=request["provider"])
        load_seconds = time.perf_counter() - started
        for _ in range(request["runs"]):
            model.run(inputs)
    except DoesNotRun as error:
        return {"problem": str(error)}
    return {
        "load_seconds": load_seconds,
        "peak_bytes": _growth(before, peak_bytes()),
        "steady_bytes": _growth(held, held_bytes()),
    }


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(after - before, 0)


if __name__ == "__main__":
    serve(_answer)
