"""A worker that asks a hostile name server for `rebind.test`: each look finds another address. Run as a module."""

from __future__ import annotations

import itertools
import socket
import sys

_ANSWERS = itertools.chain(
    [["127.0.0.1"], ["169.254.169.254"], ["127.0.0.1", "169.254.169.254"]], itertools.repeat(["10.0.0.1"])
)
_getaddrinfo = socket.getaddrinfo


def getaddrinfo(host, port, *args, **options):
    if host not in ("rebind.test", b"rebind.test"):
        return _getaddrinfo(host, port, *args, **options)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(_ANSWERS)]


socket.getaddrinfo = getaddrinfo

if __name__ == "__main__":
    from workers.__main__ import main

    sys.exit(main())
