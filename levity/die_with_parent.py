"""Replace this process by a command that the kernel kills when its parent dies, even by SIGKILL.

Usage: `python die_with_parent.py PARENT_PID COMMAND [ARGUMENT ...]`. It is a program of its own rather than a
`preexec_fn`, which is not safe beside threads. The kernel watches the *thread* that started this process: that one has
to live as long as the parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the kernel was told to watch it.
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command comes from the launcher, and no shell is wanted


if __name__ == "__main__":
    main()
