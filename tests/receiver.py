"""A receiver of webhooks on loopback, that answers by script and keeps what came."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    def verify(self, secret: str) -> dict:
        """The event, once its signature has been verified by the convention's own library."""
        return Webhook(secret).verify(self.body, self.headers)


@dataclass
class Answer:
    """`drip`: send a byte of the status line now and then, and never the rest."""

    status: int = 204
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drip: bool = False


class Receiver:
    """Gives its answers in order, the last one for ever."""

    def __init__(self, *answers: Answer):
        self.received: list[Received] = []
        self.connections = 0
        self._answers = list(answers) or [Answer()]
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        receiver = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """A handshake that fails, or a peer that went away, is what tests are about."""

            def verify_request(self, *_):
                receiver.connections += 1
                return True

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with receiver._lock:
                    receiver.received.append(Received(self.path, headers, body))
                    answers = receiver._answers
                    answer = answers.pop(0) if len(answers) > 1 else answers[0]
                receiver._give(answer, self)

            do_GET = do_POST  # noqa: N815

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hooks?team=vision"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def events(self, secret: str) -> list[str]:
        """Types of what came, each with a good signature."""
        return [received.verify(secret)["type"] for received in self.received]

    def answer_with(self, *answers: Answer):
        with self._lock:
            self._answers[:] = answers

    def use_tls(self, context: ssl.SSLContext):
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def release(self):
        """Let those go that hang."""
        self._stopped.set()

    def _give(self, answer: Answer, handler: BaseHTTPRequestHandler):
        if answer.hang:
            self._stopped.wait(30)
        if answer.drip:
            for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"y" * 1000:
                try:
                    handler.connection.send(bytes([byte]))
                except OSError:
                    return
                if self._stopped.wait(0.02):
                    return
        try:
            handler.send_response(answer.status)
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(answer.body)))
            handler.end_headers()
            handler.wfile.write(answer.body)
        except OSError:
            pass


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
