"""JSON on its way in and out: what is accepted in a body, and how records are written."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.errors import RequestError

MAX_BODY_BYTES = 2**20
_SECONDS = 30
_INT64 = range(-(2**63), 2**63)


class JsonRoute(APIRoute):
    """A route whose body, when it has one, is JSON that every database can hold."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_and_handle(request: Request) -> Response:
            return await handle(_Read(request, await _read(request)))

        return read_and_handle


class _Read(Request):
    """A request whose body was read and parsed already."""

    def __init__(self, request: Request, raw: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._raw = raw
        self._value = parse(raw) if raw else None

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:  # noqa: ANN401 - JSON
        return self._value


async def _read(request: Request) -> bytes:
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise _too_large()
    raw = bytearray()
    try:
        async with asyncio.timeout(_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError as error:
        raise RequestError(
            "request_stalled", f"The body did not arrive within {_SECONDS} s.", headers={"connection": "close"}
        ) from error
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if raw and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise RequestError("unsupported_media_type", "Send the body as application/json.")
    return bytes(raw)


def parse(raw: bytes) -> Any:  # noqa: ANN401 - JSON
    """The value of a JSON text.

    Raises:
        RequestError: `malformed_json`: no JSON, or JSON that is not portable (RFC 8259, sections 4 and 6): numbers
            that are infinite, not numbers or integers beyond 64 bits, text with NUL or half a surrogate pair.
    """
    try:
        value = json.loads(raw.decode(), parse_constant=_refuse_constant, parse_int=_integer, parse_float=_number)
    except UnicodeDecodeError as error:
        raise _malformed("it is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _malformed("it is nested too deeply") from error
    if b"\\u" in raw:
        _check_text(value)
    return value


class Json(JSONResponse):
    """JSON in which a number that is infinite or none is null: JSON has no such numbers."""

    def render(self, content: object) -> bytes:
        try:
            return super().render(content)
        except ValueError:
            return super().render(_finite(content))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    # Length first: Python refuses to convert thousands of digits, and takes long over fewer.
    if len(digits) > 20 or int(digits) not in _INT64:
        raise _malformed("an integer does not fit in 64 bits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _malformed("a number is too large")
    return value


def _check_text(value: object) -> None:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo += [*item, *item.values()]
        elif isinstance(item, list):
            todo += item
        elif isinstance(item, str):
            if "\0" in item:
                raise _malformed("text holds the NUL character")
            if any("\ud800" <= character <= "\udfff" for character in item):
                raise _malformed("text holds half a surrogate pair")


def _malformed(reason: str) -> RequestError:
    return RequestError("malformed_json", f"The body cannot be read as JSON: {reason}.")


def _too_large() -> RequestError:
    return RequestError("body_too_large", f"A JSON body may have {MAX_BODY_BYTES} bytes at most.")
