"""`python -m workers.health`: whether a worker of this data folder works, for a container's probe.

A worker that lives holds a lock in the folder `work` (`workers.workspace`) and touches it whenever its sweeper looks
around, also while the database is away: to start it again would not bring the database back. Only the standard
library is imported, since a probe runs every few seconds.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

_SWEEPS = 4
_LEAST_SECONDS = 30.0


def healthy(work: Path, *, sweep_seconds: float) -> bool:
    """Whether some worker below `work` holds its lock and looked around lately.

    Args:
        work: The folder `work` of the data folder.
        sweep_seconds: How often a worker looks around.
    """
    oldest = time.time() - max(_LEAST_SECONDS, _SWEEPS * sweep_seconds)
    return any(_held(lock) and lock.stat().st_mtime >= oldest for lock in work.glob("wrk_*.lock"))


def _held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock: probes do not take each other for a worker.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def main() -> int:
    """0 when a worker works, 1 otherwise."""
    data = Path(os.environ.get("LEVITY_DATA_DIR", "levity-data"))
    sweep_seconds = float(os.environ.get("LEVITY_SWEEP_SECONDS", "10"))
    if healthy(data / "work", sweep_seconds=sweep_seconds):
        return 0
    sys.stderr.write(f"no worker of {data} looked around lately\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
