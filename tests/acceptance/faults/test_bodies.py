"""Uploads that are cut, corrupted, endless, slow, or too much for the disk."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import os
import socket
import threading
import time
from itertools import count
from urllib.parse import urlsplit

import httpx
import pytest

from tests.acceptance.processes import eventually

pytestmark = pytest.mark.faults

MIB = 2**20


def digest(content):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


@contextlib.contextmanager
def connected(service, head, timeout=150):
    url = urlsplit(service.client.base_url)
    with socket.create_connection((url.hostname, url.port), timeout=timeout) as connection:
        connection.sendall(f"{head}\r\nHost: localhost\r\n".encode())
        yield connection


def answer_of(connection):
    """Status and body of what the server says; it may break the connection right after."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return int(received.split(b" ", 2)[1]), received


def staged(service):
    return list((service.data_dir / "staging").iterdir())


def test_upload_cut_corrupted_and_resumed(fresh, tmp_path):
    """The caller goes away in the middle of a part, a part arrives with other bytes, the API dies: only what is
    missing is sent again, and the whole has the right hash."""
    part = MIB
    content = os.urandom(4 * part + 1000)
    file = tmp_path / "weights.bin"
    file.write_bytes(content)
    with fresh(upload_part_bytes=part) as inputs:
        service = inputs.service
        with httpx.Client(base_url=service.client.base_url, trust_env=False, timeout=150) as http:
            upload = http.post("/v1/uploads", json={"filename": file.name, "size": len(content)}).json()["id"]
            url = f"/v1/uploads/{upload}"
            http.put(f"{url}/parts/1", content=content[:part]).raise_for_status()
            with connected(service, f"PUT {url}/parts/2 HTTP/1.1") as connection:
                connection.sendall(f"Content-Length: {part}\r\n\r\n".encode() + content[part : part + 300_000])
                eventually(lambda: staged(service), seconds=10)
            eventually(lambda: not staged(service), seconds=10, what="nothing of the broken part is left")
            damaged = bytes(part)
            refused = http.put(
                f"{url}/parts/3", content=damaged, headers={"content-digest": digest(content[2 * part : 3 * part])}
            )
            assert (refused.status_code, refused.json()["code"]) == (422, "digest_mismatch")
            head = http.head(url)
            assert (head.headers["upload-offset"], head.headers["upload-complete"]) == (str(part), "?0")
            # Without a hash nobody could tell; the whole's does.
            http.put(f"{url}/parts/3", content=damaged).raise_for_status()
        service.api.kill()
        service.start_api()
        sent = []
        done = service.client.upload(file, resume=upload, on_progress=lambda bytes_, _: sent.append(bytes_))
        assert done.sha256 == hashlib.sha256(content).hexdigest()
        assert min(sent) > part, "the part that had arrived was sent again"
        assert b"".join(service.blobs.read(done.sha256)) == content
        assert staged(service) == []


def test_full_disk(fresh, tmp_path):
    """The folder is a file system of 48 MiB. What does not fit is refused and leaves nothing; all else goes on."""
    folder = tmp_path / "small"
    folder.mkdir()
    with small_file_system(folder, 48 * MIB), fresh(data_dir=folder / "data", min_free_bytes=0) as inputs:
        service = inputs.service
        with httpx.Client(base_url=service.client.base_url, trust_env=False, timeout=150) as http:
            upload = http.post("/v1/uploads", json={}).json()["id"]
            refused = http.put(f"/v1/uploads/{upload}/content", content=bytes(64 * MIB))
            assert (refused.status_code, refused.json()["code"]) == (507, "store_full")
            assert staged(service) == []
            assert http.get(f"/v1/uploads/{upload}").json()["state"] == "open"
            filler = folder / "filler"
            with filler.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(MIB))
                    file.flush()
            codes = set()
            for size in (4096, MIB):
                answer = http.put(f"/v1/uploads/{upload}/content", content=os.urandom(size))
                codes.add((answer.status_code, answer.json()["code"]))
            assert codes == {(507, "store_full")}
            answer = http.get("/v1/jobs")
            assert answer.status_code == 200
            filler.unlink()
            inputs.assert_healthy()
            assert http.put(f"/v1/uploads/{upload}/content", content=os.urandom(MIB)).status_code == 200


def test_slow_bodies_and_an_overrun(fresh):
    """Sixty callers send a byte now and then, two send 10 GB more than is allowed; others hardly notice."""
    limit = 64 * MIB
    with fresh(max_upload_bytes=limit, upload_idle_seconds=3, job_time_limit_seconds=60) as inputs:
        service = inputs.service
        with httpx.Client(base_url=service.client.base_url, trust_env=False, timeout=150) as http:
            uploads = [http.post("/v1/uploads", json={}).json()["id"] for _ in range(42)]
            stop = threading.Event()
            slow = [f"PUT /v1/uploads/{upload}/content HTTP/1.1" for upload in uploads[2:]]
            slow += ["POST /v1/jobs HTTP/1.1\r\nContent-Type: application/json"] * 20
            drips = [threading.Thread(target=drip, args=(service, head, stop)) for head in slow]
            ends = []
            floods = [threading.Thread(target=flood, args=(service, uploads[1], ends))]
            for thread in [*drips, *floods]:
                thread.start()
            with connected(service, f"PUT /v1/uploads/{uploads[0]}/content HTTP/1.1") as connection:
                connection.sendall(f"Content-Length: {10 * 1024 * MIB}\r\n\r\n".encode())
                status, body = answer_of(connection)
                assert status == 413
                assert b"upload_too_large" in body
            waits = []
            for number in count():
                begun = time.monotonic()
                http.get("/livez" if number % 2 else "/v1/jobs?limit=1").raise_for_status()
                waits.append(time.monotonic() - begun)
                if number >= 400 and ends:
                    break
            job = inputs.submit()
            stop.set()
            for thread in [*drips, *floods]:
                thread.join()
        sent, status, body = ends[0]
        assert status in (None, 413)
        assert status is None or b"upload_too_large" in body
        assert sent < 10 * 1024 * MIB, "all of it was read"
        waits.sort()
        assert waits[len(waits) * 99 // 100] < 2
        service.assert_settled(service.client.wait(job.id, timeout=120), "succeeded")
        eventually(lambda: not staged(service), seconds=20)
        assert not service.blobs.exists(hashlib.sha256(bytes(limit)).hexdigest())


def drip(service, head, stop):
    """Send a body that takes for ever, a byte at a time, until the server has had enough."""
    with connected(service, head) as connection, contextlib.suppress(OSError):
        connection.sendall(f"Content-Length: {10**6}\r\n\r\n".encode())
        while not stop.wait(0.3):
            connection.sendall(b" ")


def flood(service, upload, ends):
    """Send ten gigabytes whose size nobody announced; how many were, and the answer, if one could be read."""
    chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
    sent = 0
    with connected(service, f"PUT /v1/uploads/{upload}/content HTTP/1.1") as connection:
        try:
            connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            while sent < 10 * 1024 * MIB:
                connection.sendall(chunk)
                sent += MIB
        except OSError:
            # The server has closed; what it said may be lost with the bytes that it did not read.
            pass
        try:
            ends.append((sent, *answer_of(connection)))
        except (OSError, IndexError):
            ends.append((sent, None, b""))


@contextlib.contextmanager
def small_file_system(folder, size):
    """A file system of its own at `folder`; skips where this process may not mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()) != 0:
        pytest.skip(f"cannot mount a small file system: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.umount2(os.fsencode(folder), 2)
