"""Folders for jobs, which disappear with the worker that made them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from workers.files import remove_tree


class Workspace:
    """A worker's own folder below `root`, marked as in use by a lock that ends with the process.

    A lock rather than a process id: containers that share the data folder have process ids of their own.
    """

    def __init__(self, root: Path, worker_id: str) -> None:
        self._root = root
        self._lock_file = root / f"{worker_id}.lock"
        self.folder = root / worker_id
        unfinished = root / f".{worker_id}.lock"
        self._lock = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Others look for the name below, and find the lock taken from the start.
        unfinished.rename(self._lock_file)
        self.folder.mkdir(mode=0o700)

    def beat(self) -> None:
        """Leave a sign of life, which `workers.health` looks for."""
        os.utime(self._lock)

    def close(self) -> None:
        """Delete the folder."""
        remove_tree(self.folder)
        self._lock_file.unlink(missing_ok=True)
        os.close(self._lock)

    def remove_abandoned(self) -> None:
        """Delete the folders of workers that have ended without doing so."""
        for lock_file in self._root.glob("wrk_*.lock"):
            if lock_file == self._lock_file:
                continue
            try:
                descriptor = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                remove_tree(lock_file.with_suffix(""))
                lock_file.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
