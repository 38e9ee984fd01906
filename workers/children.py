"""Child processes: started ahead, given one job, listened to, and surely ended."""

from __future__ import annotations

import itertools
import logging
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from workers.devices import Device, NoFreeDevice, Reserved
from workers.files import remove_tree
from workers.log_tail import LOG_TAIL_BYTES, PathNames, end_of
from workers.protocol import MAX_LINE_BYTES, REQUEST_FILE, Event, ProtocolViolation, Request, read_event
from workers.sandbox import Sandbox

logger = logging.getLogger(__name__)

_READ_BYTES = 2**18
_READS_AT_END = 16


class Child:
    """A running process with a folder of its own. One thread at a time uses it.

    Attributes:
        folder: Where its job's files go; the child's working directory.
        device: The CUDA device that it sees, or None.
        path_names: What its owner is shown in place of this machine's paths.
        ended: True once the process has ended and all that it said was heard.
        returncode: As of `subprocess`, once `kill` was called.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], folder: Path, names: PathNames = (), device: Device | None = None
    ) -> None:
        self.folder = folder
        self.device = device
        self.path_names: PathNames = ((str(folder), "."), *names)
        self.ended = False
        self.returncode: int | None = None
        self._process = process
        self._unfinished = bytearray()
        self._log = bytearray()
        self._log_is_whole = True
        self._pidfd = os.pidfd_open(process.pid)
        self._selector = selectors.DefaultSelector()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe.fileno(), selectors.EVENT_READ)
        self._selector.register(self._pidfd, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log_tail(self) -> str:
        """The end of its standard error, fit to be shown to the job's owner."""
        return end_of(bytes(self._log), self.path_names, whole=self._log_is_whole)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def begin(self, request: Request) -> None:
        """Hand over the job."""
        (self.folder / REQUEST_FILE).write_text(request.model_dump_json())
        stdin = self._process.stdin
        if stdin is not None:
            with suppress(BrokenPipeError):  # it has ended already, as `listen` will tell
                stdin.write(b"\n")
                stdin.close()

    def listen(self, timeout: float, *, wake: int) -> list[Event]:
        """Wait up to `timeout` seconds, or until the descriptor `wake` is readable, for something to be said.

        Raises:
            ProtocolViolation: The child said what it must not say.
        """
        with suppress(KeyError):
            self._selector.register(wake, selectors.EVENT_READ)
        events: list[Event] = []
        ready = {key.fd for key, _ in self._selector.select(timeout)}
        if self._pidfd in ready:
            # What it said before it ended is in the pipes by now.
            ready |= {key.fd for key in self._selector.get_map().values() if key.fd != wake}
            self._selector.unregister(self._pidfd)
            self.ended = True
        for pipe, hear in ((self._process.stdout, self._hear_events), (self._process.stderr, self._hear_log)):
            if pipe is not None and pipe.fileno() in ready:
                events += hear(pipe.fileno())
        return events

    def _hear_events(self, fd: int) -> list[Event]:
        events: list[Event] = []
        for chunk in self._chunks(fd):
            self._unfinished += chunk
            if b"\n" in chunk:
                *lines, self._unfinished = self._unfinished.split(b"\n")
                events += [read_event(bytes(line)) for line in lines]
            if len(self._unfinished) > MAX_LINE_BYTES:
                raise ProtocolViolation(f"a message of more than {MAX_LINE_BYTES} bytes")
        return events

    def _hear_log(self, fd: int) -> list[Event]:
        for chunk in self._chunks(fd):
            self._log += chunk
            if len(self._log) > LOG_TAIL_BYTES:
                self._log_is_whole = False
                del self._log[:-LOG_TAIL_BYTES]
        return []

    def _chunks(self, fd: int) -> Iterator[bytes]:
        # Once the process has ended, all that is left is what the pipe holds, unless a grandchild writes for ever.
        for _ in range(_READS_AT_END if self.ended else 1):
            try:
                chunk = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                with suppress(KeyError):
                    self._selector.unregister(fd)
                return
            yield chunk

    def terminate(self, grace_seconds: float) -> None:
        """Ask all its processes to end, and end them after `grace_seconds`."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._pidfd, selectors.EVENT_READ)
            selector.select(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End all its processes at once, and wait until the first of them has ended. Calling it again is harmless."""
        if self.returncode is not None:
            return
        # The process was not waited for yet, so its group's number cannot belong to others.
        self._signal(signal.SIGKILL)
        with suppress(ProtocolViolation):
            self.listen(0, wake=self._pidfd)
        self.returncode = self._process.wait()
        self.ended = True
        self._selector.close()
        os.close(self._pidfd)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class Children:
    """Starts children, keeping some ahead of need.

    Args:
        sandbox: How they are confined.
        folder: Where each gets a folder of its own.
        warm: How many wait with their imports done.
        refill_at_once: Replace one that is taken at once. Otherwise when a job is done, so that the imports do not
            disturb the job's timings.
        devices: CUDA devices, of which each child gets one, at least as many as children that are taken at once; None
            where children compute on the CPU.
    """

    def __init__(
        self, sandbox: Sandbox, folder: Path, *, warm: int, refill_at_once: bool, devices: Reserved | None = None
    ) -> None:
        self._sandbox = sandbox
        self._devices = devices
        self._folder = folder
        self._warm = warm
        self._refill_at_once = refill_at_once
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._spares: deque[Child] = deque()
        self._closed = False
        # A child dies with the thread that started it (PR_SET_PDEATHSIG), so that thread must outlive all jobs.
        self._spawner = ThreadPoolExecutor(1, "spawner")

    @property
    def path_names(self) -> PathNames:
        """What the owners of jobs are shown in place of this machine's paths."""
        return self._sandbox.path_names

    def prepare(self) -> None:
        """Start what is missing to the number of warm children. Call it when a job is done."""
        self._spawner.submit(self._refill)

    def take(self) -> Child:
        """A fresh child, warm when there is one; its caller must `dismiss` it.

        Raises:
            OSError: No process could be started.
        """
        child = self._living_spare() or self._spawner.submit(self._spare_or_new).result()
        if self._refill_at_once:
            self.prepare()
        return child

    def dismiss(self, child: Child) -> None:
        """End a child, delete its folder, and let another have its device."""
        child.kill()
        remove_tree(child.folder)
        if self._devices is not None and child.device is not None:
            self._devices.give_back(child.device)
            child.device = None

    def close(self) -> None:
        """End the waiting children."""
        self._closed = True
        self._spawner.shutdown(cancel_futures=True)
        while (child := self._next_spare()) is not None:
            self.dismiss(child)

    def _living_spare(self) -> Child | None:
        while (child := self._next_spare()) is not None:
            if child.alive():
                return child
            self.dismiss(child)
            logger.warning("a waiting child had died, status %s: %s", child.returncode, child.log_tail[-500:])
        return None

    def _spare_or_new(self) -> Child:
        # One that was being started meanwhile may have the last device.
        child = self._living_spare() or self._spawn()
        if child is None:
            raise NoFreeDevice("every CUDA device of this worker is taken")
        return child

    def _next_spare(self) -> Child | None:
        with self._lock:
            return self._spares.popleft() if self._spares else None

    def _refill(self) -> None:
        while len(self._spares) < self._warm and not self._closed:
            try:
                child = self._spawn()
            except OSError:
                logger.exception("could not start a child")
                return
            if child is None:
                return
            with self._lock:
                self._spares.append(child)

    def _spawn(self) -> Child | None:
        """A new child; None when all devices are taken."""
        device = None if self._devices is None else self._devices.take()
        if self._devices is not None and device is None:
            return None
        try:
            folder = self._folder / str(next(self._numbers))
            folder.mkdir(mode=0o700, parents=True)
            command = self._sandbox.command(folder, device)
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command.arguments,
                env=command.environment,
                cwd=command.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            if self._devices is not None and device is not None:
                self._devices.give_back(device)
            raise
        return Child(process, folder, self._sandbox.path_names, device)
