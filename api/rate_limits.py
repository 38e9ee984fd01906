"""How often a tenant may ask, told in every answer and enforced over all API processes.

Counted in Redis where Redis is the broker, else in each process for itself. When Redis is away nobody is refused: the
limit protects other tenants from one that asks too often, and an outage must not become theirs.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.authentication import PRINCIPAL
from api.errors import RequestError, problem_response
from catalog.keys.repository import Principal
from catalog.settings import Settings

if TYPE_CHECKING:
    # Not imported where nothing is limited.
    from limits.strategies import SlidingWindowCounterRateLimiter

logger = logging.getLogger(__name__)

_WINDOW_SECONDS = 60
_AWAY_SECONDS = 10.0
_STORE_TIMEOUT_SECONDS = 0.5


class RateLimitMiddleware:
    """Pure ASGI, behind the authentication. Headers as in draft-ietf-httpapi-ratelimit-headers-10.

    Args:
        app: The next application.
        settings: The limit of tenants without one of their own, and where to count.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._limiter: SlidingWindowCounterRateLimiter | None = None
        self._away_until = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal: Principal | None = scope.get(PRINCIPAL)
        limit = 0 if principal is None else principal.requests_per_minute or self._settings.requests_per_minute
        if principal is None or not limit:
            await self._app(scope, receive, send)
            return
        allowed, remaining, reset = await run_sync(self._hit, principal.tenant, limit)
        headers = {
            "ratelimit-policy": f'"tenant";q={limit};w={_WINDOW_SECONDS}',
            "ratelimit": f'"tenant";r={remaining};t={reset}',
        }
        if not allowed:
            error = RequestError(
                "rate_limited",
                f"This tenant may send {limit} requests a minute; go on in {reset} s.",
                headers={**headers, "retry-after": str(reset)},
            )
            await problem_response(scope, error)(scope, receive, send)
            return

        async def send_limited(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self._app(scope, receive, send_limited)

    def _hit(self, tenant: str, limit: int) -> tuple[bool, int, int]:
        """Whether one more request is within the limit, how many more are, and in how many seconds more will be."""
        from limits import RateLimitItemPerMinute  # noqa: PLC0415 - a tenth of a second

        item = RateLimitItemPerMinute(limit, namespace="levity")
        if time.monotonic() > self._away_until:
            try:
                if self._limiter is None:
                    self._limiter = _limiter(self._settings)
                allowed = self._limiter.hit(item, tenant)
                stats = self._limiter.get_window_stats(item, tenant)
            except Exception as error:  # noqa: BLE001 - whatever a store's client raises
                logger.warning("requests are not limited, the store of counts is away: %s", type(error).__name__)
                self._away_until = time.monotonic() + _AWAY_SECONDS
            else:
                return allowed, stats.remaining, max(1, math.ceil(stats.reset_time - time.time()))
        return True, limit, _WINDOW_SECONDS


def _limiter(settings: Settings) -> SlidingWindowCounterRateLimiter:
    from limits.storage import storage_from_string  # noqa: PLC0415
    from limits.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

    url = settings.resolved_broker_url
    if not url.startswith(("redis://", "rediss://")):
        return SlidingWindowCounterRateLimiter(storage_from_string("memory://"))
    timeouts = {"socket_timeout": _STORE_TIMEOUT_SECONDS, "socket_connect_timeout": _STORE_TIMEOUT_SECONDS}
    return SlidingWindowCounterRateLimiter(storage_from_string(url, key_prefix="levity-rate", **timeouts))
