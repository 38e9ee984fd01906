"""One webhook request: to a checked address, within its time, and nowhere else.

httpcore follows no redirect, reads no proxy from the environment, keeps no cookies and unpacks no compression. What is
added here is the network below it: names are resolved once, every address is judged, and the connection goes to an
address that was judged, so that a name which changes its mind (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import httpcore
import httpx

from catalog.webhooks.addresses import Network, Policy, Target, UrlRefused, check, refusal
from catalog.webhooks.deliveries import Claim, Outcome
from catalog.webhooks.signatures import signature_header

_RESPONSE_BYTES = 2048
_MAX_MESSAGE_CHARACTERS = 500


class AddressRefused(Exception):
    """The name leads to an address that webhooks must not go to."""


class NameNotResolved(Exception):
    """The name leads nowhere."""


class TlsFailed(Exception):
    """No secure connection came about, such as when the certificate is not the name's."""


class Sender:
    """Makes attempts at deliveries, from several threads.

    Args:
        policy: Where webhooks may go.
        timeout_seconds: For a whole attempt.
    """

    def __init__(self, policy: Policy, *, timeout_seconds: float) -> None:
        self._policy = policy
        self._timeout = timeout_seconds
        # Certificates of SSL_CERT_FILE where that is set, otherwise those that certifi ships.
        self._tls = httpx.create_ssl_context()
        self._open = _OpenSockets()

    def send(self, claim: Claim) -> Outcome:
        """Make the attempt; whatever goes wrong is its outcome."""
        started = time.monotonic()
        status = response = None
        error: tuple[str, str] | None
        try:
            target = check(claim.url, self._policy)
            status, response = self._post(claim, target, started + self._timeout)
            error = _error_of_status(status)
        except UrlRefused as refused:
            error = ("url_refused", str(refused))
        except AddressRefused as refused:
            error = ("address_refused", str(refused))
        except NameNotResolved as unresolved:
            error = ("name_not_resolved", str(unresolved))
        except httpcore.TimeoutException:
            error = ("timeout", f"The receiver did not answer within {self._timeout:g} s.")
        except TlsFailed as failed:
            error = ("tls_failed", str(failed))
        except httpcore.ConnectError as failed:
            error = ("connection_failed", str(failed))
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as failed:
            error = ("bad_response", f"{type(failed).__name__}: {failed}")
        return Outcome(
            duration_seconds=time.monotonic() - started,
            status=status,
            error_code=error and error[0],
            error_message=error[1][:_MAX_MESSAGE_CHARACTERS] if error else "",
            response=response,
        )

    def abort(self) -> None:
        """Break all connections; attempts under way fail at once, and so do later ones."""
        self._open.close()

    def _post(self, claim: Claim, target: Target, deadline: float) -> tuple[int, str]:
        body = claim.payload.encode()
        timestamp = int(claim.now)
        headers: dict[bytes | str, bytes | str] = {
            "host": target.host_header,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "user-agent": f"Levity/{version('levity')}",
            "webhook-id": claim.delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature_header(
                claim.secrets, message_id=claim.delivery_id, timestamp=timestamp, body=body
            ),
        }
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        backend = _GuardedBackend(self._policy.allowed_networks, deadline, self._open)
        with (
            httpcore.ConnectionPool(ssl_context=self._tls, max_connections=1, network_backend=backend) as pool,
            pool.stream("POST", url, headers=headers, content=body, extensions={"timeout": limits}) as answer,
        ):
            start = bytearray()
            # A status says enough: an answer that breaks off has been given.
            with suppress(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
                for chunk in answer.iter_stream():
                    start += chunk
                    if len(start) >= _RESPONSE_BYTES:
                        break
            # PostgreSQL's text has no NUL.
            return answer.status, bytes(start[:_RESPONSE_BYTES]).decode(errors="replace").replace("\0", "\ufffd")


def _error_of_status(status: int) -> tuple[str, str] | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return "redirected", f"The receiver answered {status}; redirects are not followed, name the final URL."
    return "bad_status", f"The receiver answered {status}; anything but 2xx is a failure."


class _OpenSockets:
    """Sockets of attempts under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            if self._closed:
                raise httpcore.ConnectError("the worker is shutting down")
            self._sockets.add(sock)

    def remove(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(sock)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for sock in self._sockets:
                # Threads that wait for it wake up; closing it under them would not do that.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _GuardedBackend(httpcore.NetworkBackend):
    """Connects to addresses that it has judged, as long as there is time."""

    def __init__(self, allowed: Iterable[Network], deadline: float, opened: _OpenSockets) -> None:
        self._allowed = tuple(allowed)
        self._deadline = deadline
        self._opened = opened
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline rules
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port, _seconds_left(self._deadline, httpcore.ConnectTimeout))
        # One address that is refused spoils all: a name that mixes them is not to be trusted with the others.
        for address in addresses:
            reason = refusal(ipaddress.ip_address(address), self._allowed)
            if reason is not None:
                raise AddressRefused(f"{host} leads to {reason}" if host != address else reason)
        failure = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                stream = self._plain.connect_tcp(
                    address,
                    port,
                    timeout=_seconds_left(self._deadline, httpcore.ConnectTimeout),
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except httpcore.ConnectError as error:
                failure = error
                continue
            return _TimedStream(stream, self._deadline, self._opened)
        raise failure


class _TimedStream(httpcore.NetworkStream):
    """A stream whose operations end at a deadline together, where timeouts would let each begin anew."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float, opened: _OpenSockets) -> None:
        self._stream = stream
        self._deadline = deadline
        self._opened = opened
        self._socket: socket.socket = stream.get_extra_info("socket")
        try:
            opened.add(self._socket)
        except httpcore.ConnectError:
            stream.close()
            raise

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline rules
        return self._stream.read(max_bytes, _seconds_left(self._deadline, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _seconds_left(self._deadline, httpcore.WriteTimeout))

    def close(self) -> None:
        self._opened.remove(self._socket)
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        left = _seconds_left(self._deadline, httpcore.ConnectTimeout)
        self._opened.remove(self._socket)
        try:
            secure = self._stream.start_tls(ssl_context, server_hostname, left)
        except httpcore.ConnectError as error:
            raise TlsFailed(str(error)) from error
        return _TimedStream(secure, self._deadline, self._opened)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's
        return self._stream.get_extra_info(info)


def _seconds_left(deadline: float, error: type[httpcore.TimeoutException]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise error
    return left


def _resolve(host: str, port: int, seconds: float) -> list[str]:
    """All addresses of a name, in the resolver's order.

    The system's resolver knows no timeout, so it runs in a thread that is left behind when it takes too long.
    """
    answers: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)))
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty as error:
        raise httpcore.ConnectTimeout from error
    if isinstance(answer, OSError):
        raise NameNotResolved(f"{host} cannot be resolved: {answer.strerror or answer}")
    return answer
