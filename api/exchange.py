"""One request and its answer, as they pass through."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Send

_SHORT_BODY_BYTES = 2**16
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 2**30


class Exchange:
    """A request's body as far as it has been read, and its answer.

    A body that is answered before it has arrived, such as one that is too large, must not be read to its end, however
    far that is. But closing a connection while bytes arrive makes the kernel reset it, and the caller might never see
    the answer: so it gets the answer, and a moment to notice it.

    Attributes:
        status: Of the answer; 0 before there is one.
        received: Bytes of the request's body.
        sent: Bytes of the answer's body.
    """

    def __init__(self, headers: Headers, receive: Receive, send: Send, request_id: str) -> None:
        self.status = self.received = self.sent = 0
        self._receive = receive
        self._send = send
        self._request_id = request_id
        # The server has read a short body already.
        length = headers.get("content-length", "0")
        self._goes_on = "transfer-encoding" in headers or not length.isdigit() or int(length) > _SHORT_BODY_BYTES

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._goes_on = False
        return message

    async def send(self, message: Message) -> None:
        self.sent += len(message.get("body", b""))
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            if self._goes_on:
                headers["connection"] = "close"
        elif self._goes_on and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Throw away what arrives until the body or the caller's patience ends, or ours: a fast caller sends ten
        gigabytes in a moment.
        """
        most = self.received + _LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._goes_on and self.received < most:
                    await self.receive()
