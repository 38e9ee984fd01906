"""Notices when a file is opened or changed, and when a port is called."""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hostile.case import Lure

# linux/inotify.h
_ACCESS, _MODIFY, _ATTRIB, _OPEN, _DELETE = 0x1, 0x2, 0x4, 0x20, 0x400
_EVENT = struct.Struct("iIII")


class Watch:
    """A lure and what happens to it. The kernel tells of every process that opens the canary, in any namespace."""

    def __init__(self, folder: Path) -> None:
        secret = secrets.token_hex(16)
        canary = folder / "canary"
        canary.write_text(secret)
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        wanted = _ACCESS | _MODIFY | _ATTRIB | _OPEN | _DELETE
        assert libc.inotify_add_watch(self._inotify, os.fsencode(canary), wanted) >= 0
        self._tcp = socket.create_server(("127.0.0.1", 0))
        port = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", port))
        self.lure = Lure(canary, secret, port)

    def happened(self) -> set[str]:
        """`opened`, `changed`, `called`, `sent`: all that happened so far and was not told yet."""
        found: set[str] = set()
        try:
            data = os.read(self._inotify, 2**16)
        except BlockingIOError:
            data = b""
        while data:
            _, mask, _, length = _EVENT.unpack_from(data)
            found.add("changed" if mask & (_MODIFY | _ATTRIB | _DELETE) else "opened")
            data = data[_EVENT.size + length :]
        if select.select([self._tcp], [], [], 0)[0]:
            self._tcp.accept()[0].close()
            found.add("called")
        if select.select([self._udp], [], [], 0)[0]:
            self._udp.recv(2**16)
            found.add("sent")
        return found

    def close(self) -> None:
        os.close(self._inotify)
        self._tcp.close()
        self._udp.close()


@contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """A watch as long as the block runs."""
    watch = Watch(folder)
    try:
        yield watch
    finally:
        watch.close()
