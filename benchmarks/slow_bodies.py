"""What others notice of callers who send slowly, and of callers who send far too much.

Sixty-four uploads and thirty-two JSON bodies arrive a byte at a time, while two callers send ten gigabytes more than
is allowed, one that says so and one that does not. Meanwhile a process of its own asks `/livez` and a page of jobs over
and over; before that it does so undisturbed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
from service import percentile, running_service, table
from transfers import bystander

MIB = 2**20


def connect(url: str, head: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60)
    connection.sendall(f"{head}\r\nHost: localhost\r\n".encode())
    return connection


def drip(url: str, head: str, stop: threading.Event) -> None:
    with connect(url, head) as connection, suppress(OSError):
        connection.sendall(b"Content-Length: 1000000\r\n\r\n")
        while not stop.wait(0.5):
            connection.sendall(b" ")


def flood(url: str, head: str, gigabytes: int, *, declared: bool) -> tuple[float, float]:
    """Seconds until the connection was closed, and MiB that had been sent by then."""
    piece = bytes(MIB) if declared else b"100000\r\n" + bytes(MIB) + b"\r\n"
    field = f"Content-Length: {gigabytes * 1024 * MIB}" if declared else "Transfer-Encoding: chunked"
    start, sent = time.perf_counter(), 0
    with connect(url, head) as connection, suppress(OSError):
        connection.sendall(f"{field}\r\n\r\n".encode())
        while sent < gigabytes * 1024:
            connection.sendall(piece)
            sent += 1
    return time.perf_counter() - start, sent


def waits(url: str, seconds: float) -> list[float]:
    stop, results = multiprocessing.Event(), multiprocessing.Queue()
    other = multiprocessing.Process(target=bystander, args=(url, stop, results))
    other.start()
    time.sleep(seconds)
    stop.set()
    found = results.get(timeout=60)
    other.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--limit-mib", type=int, default=512)
    parser.add_argument("--gigabytes", type=int, default=10, help="what the two callers try to send")
    options = parser.parse_args()
    with running_service("--no-worker", LEVITY_MAX_UPLOAD_BYTES=str(options.limit_mib * MIB)) as service:
        quiet = waits(service.url, options.seconds)
        ids = [httpx.post(f"{service.url}/v1/uploads", json={}).json()["id"] for _ in range(66)]
        heads = [f"PUT /v1/uploads/{upload}/content HTTP/1.1" for upload in ids]
        slow = [*heads[2:], *["POST /v1/jobs HTTP/1.1\r\nContent-Type: application/json"] * 32]
        stop = threading.Event()
        threads = [threading.Thread(target=drip, args=(service.url, head, stop)) for head in slow]
        for thread in threads:
            thread.start()
        ends: dict[bool, tuple[float, float]] = {}

        def overrun(head: str, *, declared: bool) -> None:
            ends[declared] = flood(service.url, head, options.gigabytes, declared=declared)

        for head, declared in zip(heads, (True, False), strict=False):
            threads.append(threading.Thread(target=overrun, args=(head,), kwargs={"declared": declared}))
            threads[-1].start()
        loud = waits(service.url, options.seconds)
        stop.set()
        for thread in threads:
            thread.join()
    rows = [("what", "undisturbed", "meanwhile")]
    for name, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0)):
        rows.append((f"others' wait, {name}", *(f"{percentile(found, share) * 1e3:.1f} ms" for found in (quiet, loud))))
    for declared, name in ((True, "declared"), (False, "undeclared")):
        seconds, mib = ends[declared]
        rows.append((f"{options.gigabytes} GiB {name}: cut off after", "", f"{seconds:.1f} s, {mib:.0f} MiB"))
    print(table(rows))


if __name__ == "__main__":
    main()
