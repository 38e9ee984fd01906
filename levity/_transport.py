"""One HTTP exchange with the service: what may be tried again is, what went wrong becomes a `LevityError`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from levity.errors import LevityError

_ATTEMPTS = 7
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_RESUME_PAUSE_SECONDS = 0.5
# Answers of a service, or of a proxy before it, that is not able to take the request at this moment.
TRY_LATER = frozenset({429, 502, 503, 504})
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})

Body = Callable[[], bytes | Iterator[bytes]]
"""Makes the request's body, anew for every try."""


class Transport:
    """Requests below one base URL.

    Args:
        base_url: Where the service answers, such as `http://127.0.0.1:8000`.
        timeout: Seconds that connecting, sending or receiving a piece may take.
        api_key: Sent with every request, where there is one.
    """

    def __init__(self, base_url: str, timeout: float, api_key: str | None = None) -> None:
        self._client = httpx.Client(
            base_url=base_url,
            timeout=httpx.Timeout(timeout, connect=10),
            headers={"user-agent": "levity-client", **({"authorization": f"Bearer {api_key}"} if api_key else {})},
            # A proxy named in the environment cannot reach this machine's own loopback.
            trust_env=httpx.URL(base_url).host not in ("localhost", "127.0.0.1", "::1"),
        )
        self._base_url = base_url

    def close(self) -> None:
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        body: Body | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = None,
        repeatable: bool | None = None,
    ) -> httpx.Response:
        """Send a request and return its answer, which is below 400.

        Args:
            method: HTTP method.
            path: Path below the base URL.
            json: Body, as JSON.
            body: Body, as bytes.
            params: Query; those that are None are left out.
            headers: Headers beside the usual ones.
            repeatable: Whether doing it twice does no harm; by default so for GET, HEAD, PUT and DELETE. Others are
                tried again only when no connection came about.
            read_timeout: Seconds to wait for the answer, when it is known to take long.
        """
        safe = method in _IDEMPOTENT if repeatable is None else repeatable
        timeout = self._timeout(read_timeout)
        pauses = _pauses()
        while True:
            pause = next(pauses, None)
            try:
                response = self._client.request(
                    method,
                    path,
                    json=json,
                    content=body() if body else None,
                    params=_given(params),
                    headers=headers,
                    timeout=timeout,
                )
            except httpx.TransportError as error:
                if pause is None or not (safe or isinstance(error, httpx.ConnectError)):
                    raise self.unreachable(error) from error
                time.sleep(pause)
                continue
            if response.status_code in TRY_LATER and safe and pause is not None:
                time.sleep(_retry_after(response, pause))
                continue
            if response.is_error:
                raise error_of(response)
            return response

    def pages(self, path: str, query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The items of a list, fetched page by page."""
        cursor: str | None = None
        while True:
            page = self.request("GET", path, params={**query, "cursor": cursor}).json()
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = None,
    ) -> Iterator[httpx.Response]:
        """GET whose body is read piece by piece; one try. Raises `httpx.TransportError` when the line breaks."""
        with self._client.stream("GET", path, headers=headers, timeout=self._timeout(read_timeout)) as response:
            if response.is_error:
                response.read()
                raise error_of(response)
            yield response

    def unreachable(self, error: Exception) -> LevityError:
        """Say that the service did not answer."""
        reason = str(error) or type(error).__name__
        return LevityError("unreachable", f"The service at {self._base_url} does not answer: {reason}")

    def pause(self) -> None:
        """Wait a moment before a broken stream is taken up again."""
        time.sleep(_RESUME_PAUSE_SECONDS)

    def _timeout(self, read: float | None) -> httpx.Timeout:
        usual = self._client.timeout
        return usual if read is None else httpx.Timeout(connect=usual.connect, read=read, write=usual.write, pool=10)


def error_of(response: httpx.Response) -> LevityError:
    """The error that an answer of 400 or more stands for."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    message = problem.get("detail") or problem.get("title") or f"The service answered {response.status_code}."
    return LevityError(
        str(problem.get("code") or f"http_{response.status_code}"),
        str(message),
        status=response.status_code,
        problem=problem,
    )


def _pauses() -> Iterator[float]:
    """Seconds to wait after each failed try but the last, with jitter."""
    pause = _FIRST_PAUSE_SECONDS
    for _ in range(_ATTEMPTS - 1):
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients in time, guards nothing
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    try:
        return min(float(response.headers["retry-after"]), 30.0)
    except (KeyError, ValueError):
        return otherwise


def _given(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if params is None else {key: value for key, value in params.items() if value is not None}
