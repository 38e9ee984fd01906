"""Processes that tests start on purpose, told apart from those that others leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from levity import die_with_parent

_started: list[subprocess.Popen[bytes]] = []


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command, whose program is named by its path, that does not outlive this process, even when killed."""
    wrapper = [sys.executable, "-S", "-E", die_with_parent.__file__, str(os.getpid())]
    process = subprocess.Popen([*wrapper, *command], stdin=subprocess.DEVNULL, **options)
    _started.append(process)
    return process


def started() -> set[int]:
    """Process ids of what `spawn` started and nobody has waited for."""
    return {process.pid for process in _started if process.returncode is None}
