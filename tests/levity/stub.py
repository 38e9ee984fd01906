"""An HTTP server that answers by script: whatever a network or a service can do to a client."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Answer:
    """`truncate_to`: announce the whole body, send so many bytes of it, break the line. `hang`: then be silent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    truncate_to: int | None = None
    hang: bool = False


def reply(body, status=200, **headers):
    return Answer(status, json.dumps(body).encode(), {"content-type": "application/json"} | headers)


def problem(status, code, **more):
    body = {
        "type": f"urn:levity:problem:{code}",
        "title": code,
        "status": status,
        "detail": f"It is {code}.",
        "code": code,
    }
    return Answer(status, json.dumps(body | more).encode(), {"content-type": "application/problem+json"})


class Stub:
    """Gives each route's answers in order, the last one for ever. A callable answer gets the request."""

    def __init__(self):
        self.requests: list[Request] = []
        self._routes: dict[str, list] = {}
        self._stopped = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                stub.requests.append(request)
                stub.answer(request, self)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = handle_any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def on(self, route, *answers):
        """`route` is `METHOD /path`, without the query."""
        self._routes[route] = list(answers)

    def sent(self, route):
        return [request for request in self.requests if f"{request.method} {request.path.partition('?')[0]}" == route]

    def answer(self, request, handler):
        answers = self._routes.get(f"{request.method} {request.path.partition('?')[0]}")
        answer = problem(404, "not_found") if not answers else answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(request)
        handler.send_response(answer.status)
        streams = answer.headers.get("content-type") == "text/event-stream"
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if not streams:
            handler.send_header("content-length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.write(answer.body[: answer.truncate_to])
        handler.wfile.flush()
        if answer.hang:
            self._stopped.wait(30)
        if streams or answer.truncate_to is not None:
            handler.close_connection = True
