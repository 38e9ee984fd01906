"""The child: one process for one job, started before its job is known.

    python -P -s -m workers.runner '<limits as JSON>'

It limits itself, imports what jobs need, waits for its request, answers and ends. Its standard output is the private
line to the worker; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

from workers.protocol import Limits

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Serve one request."""
    limits = Limits.model_validate_json(arguments[0])
    if not _impose(limits):
        return 0
    line = os.dup(1)
    os.dup2(2, 1)
    from workers import execution  # noqa: PLC0415 - large libraries come under the limits too

    if not sys.stdin.buffer.read(1):
        return 0  # the worker ended before it had a job for us
    execution.serve(line, limits.address_space)
    # Nothing is left to do, and the destructors of large libraries take their time or crash.
    sys.stderr.flush()
    os._exit(0)


def _impose(limits: Limits) -> bool:
    """Set the limits; False when the parent has ended meanwhile."""
    if limits.die_with is not None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != limits.die_with:
            return False
    # Where memory runs out in a container or on a GPU's host, the kernel is to end this process and not the worker.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.processes is not None:
        _lower(resource.RLIMIT_NPROC, limits.processes)
    if limits.address_space is not None:
        _lower(resource.RLIMIT_AS, limits.address_space)
    os.nice(limits.niceness)
    return True


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
