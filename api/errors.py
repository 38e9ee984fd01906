"""What goes wrong, as RFC 9457 problem details. The one table from a domain's code to an HTTP status is here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import Scope

from catalog.errors import CatalogError

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "levity.request_id"
"""Key of the request's identifier in its ASGI scope."""

STATUS: dict[str, HTTPStatus] = {
    "host_not_allowed": HTTPStatus.BAD_REQUEST,
    "malformed_json": HTTPStatus.BAD_REQUEST,
    "bad_request": HTTPStatus.BAD_REQUEST,
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
    "insufficient_scope": HTTPStatus.FORBIDDEN,
    "keys_required": HTTPStatus.FORBIDDEN,
    "storage_used_up": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "upload_not_found": HTTPStatus.NOT_FOUND,
    "model_not_found": HTTPStatus.NOT_FOUND,
    "dataset_not_found": HTTPStatus.NOT_FOUND,
    "job_not_found": HTTPStatus.NOT_FOUND,
    "artifact_not_found": HTTPStatus.NOT_FOUND,
    "webhook_not_found": HTTPStatus.NOT_FOUND,
    "delivery_not_found": HTTPStatus.NOT_FOUND,
    "key_not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "upload_stalled": HTTPStatus.REQUEST_TIMEOUT,
    "request_stalled": HTTPStatus.REQUEST_TIMEOUT,
    "conflict": HTTPStatus.CONFLICT,
    "in_use": HTTPStatus.CONFLICT,
    "job_not_finished": HTTPStatus.CONFLICT,
    "job_not_retryable": HTTPStatus.CONFLICT,
    "model_rejected": HTTPStatus.CONFLICT,
    "model_not_ready": HTTPStatus.CONFLICT,
    "dataset_rejected": HTTPStatus.CONFLICT,
    "part_missing": HTTPStatus.CONFLICT,
    "upload_complete": HTTPStatus.CONFLICT,
    "upload_incomplete": HTTPStatus.CONFLICT,
    "webhook_disabled": HTTPStatus.CONFLICT,
    "key_not_valid": HTTPStatus.CONFLICT,
    "delivery_in_flight": HTTPStatus.CONFLICT,
    "too_many_webhooks": HTTPStatus.CONFLICT,
    "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "upload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "range_not_satisfiable": HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    "invalid_request": HTTPStatus.UNPROCESSABLE_ENTITY,
    "calibration_data_missing": HTTPStatus.UNPROCESSABLE_ENTITY,
    "training_data_missing": HTTPStatus.UNPROCESSABLE_ENTITY,
    "provider_missing": HTTPStatus.UNPROCESSABLE_ENTITY,
    "student_missing": HTTPStatus.UNPROCESSABLE_ENTITY,
    "student_not_used": HTTPStatus.UNPROCESSABLE_ENTITY,
    "dataset_mismatch": HTTPStatus.UNPROCESSABLE_ENTITY,
    "digest_mismatch": HTTPStatus.UNPROCESSABLE_ENTITY,
    "idempotency_key_reused": HTTPStatus.UNPROCESSABLE_ENTITY,
    "inspection_failed": HTTPStatus.UNPROCESSABLE_ENTITY,
    "labels_out_of_range": HTTPStatus.UNPROCESSABLE_ENTITY,
    "size_mismatch": HTTPStatus.UNPROCESSABLE_ENTITY,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "too_many_queued_jobs": HTTPStatus.TOO_MANY_REQUESTS,
    "worker_time_used_up": HTTPStatus.TOO_MANY_REQUESTS,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "database_away": HTTPStatus.SERVICE_UNAVAILABLE,
    "identity_provider_away": HTTPStatus.SERVICE_UNAVAILABLE,
    "not_ready": HTTPStatus.SERVICE_UNAVAILABLE,
    "bytes_gone": HTTPStatus.SERVICE_UNAVAILABLE,
    "store_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "store_full": HTTPStatus.INSUFFICIENT_STORAGE,
}

_CODE_OF_STATUS = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
}


class _Described(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class FieldProblem(_Described):
    """What is wrong with one part of a request."""

    pointer: str
    """JSON Pointer into the body; for other parts of the request `/query/…`, `/path/…` or `/header/…`."""
    message: str
    code: str
    """Kind of the mistake, such as `missing`, `extra_forbidden` or `less_than_equal`."""


class Problem(_Described):
    """An error (RFC 9457)."""

    type: str
    """`urn:levity:problem:` and the code."""
    title: str
    status: int
    detail: str
    """One or two sentences: what was wrong, where, what would work."""
    code: str
    """Stable machine-readable identifier."""
    instance: str
    """Path of the request."""
    request_id: str
    """The response's X-Request-ID, to find the request in the server's log."""
    errors: list[FieldProblem] | None = None
    """Each part of the request that is wrong, where that can be said."""


class RequestError(Exception):
    """A request that cannot be answered as asked.

    Args:
        code: One of `STATUS`, or any other code when `status` is given.
        message: One or two sentences for a person.
        errors: The parts of the request that are to blame.
        headers: For the response.
        status: HTTP status, for codes that come from elsewhere.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        status: HTTPStatus | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.errors = errors
        self.headers = headers
        self.status = STATUS[code] if status is None else status


class Unauthenticated(RequestError):
    """Nobody is known to ask.

    Args:
        message: Why.
        challenge: What `WWW-Authenticate` says (RFC 6750): that the token is no good, or only that there must be one.
    """

    def __init__(self, message: str, *, challenge: str = 'Bearer error="invalid_token"') -> None:
        super().__init__("unauthenticated", message, headers={"www-authenticate": challenge})


class InvalidField(RequestError):
    """One part of the request is wrong by a rule that no schema states."""

    def __init__(self, pointer: str, message: str, *, code: str = "value_error") -> None:
        super().__init__("invalid_request", message, errors=[FieldProblem(pointer=pointer, message=message, code=code)])


def problem_response(scope: Scope, error: RequestError) -> JSONResponse:
    """The response that says so."""
    content = {
        "type": f"urn:levity:problem:{error.code}",
        "title": title(error.code),
        "status": int(error.status),
        "detail": error.message,
        "code": error.code,
        "instance": scope["path"],
        "request_id": scope.get(REQUEST_ID, ""),
    }
    if error.errors:
        content["errors"] = [entry.model_dump() for entry in error.errors]
    # Paths and bodies can hold what UTF-8 cannot: ASCII with escapes holds everything.
    return _AsciiJson(content, status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE)


def title(code: str) -> str:
    """The code in words."""
    return code.replace("_", " ").capitalize()


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem."""

    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        return problem_response(request.scope, error)

    async def refuse_catalog(request: Request, error: CatalogError) -> JSONResponse:
        headers = None if error.retry_after_seconds is None else {"retry-after": str(error.retry_after_seconds)}
        return problem_response(request.scope, RequestError(error.code, error.message, headers=headers))

    async def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODE_OF_STATUS.get(HTTPStatus(error.status_code), "bad_request")
        message = {
            "not_found": f"There is nothing at {request.url.path}.",
            "method_not_allowed": f"{request.method} is not possible here.",
        }.get(code, str(error.detail))
        status = HTTPStatus(error.status_code)
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            # Starlette names the methods of the first route of this path alone.
            headers["allow"] = ", ".join(_methods(request))
        return problem_response(request.scope, RequestError(code, message, headers=headers, status=status))

    async def refuse_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(request.scope, invalid(error.errors(), error.body))

    app.add_exception_handler(RequestError, refuse)  # type: ignore[arg-type] # Starlette's type knows no subclasses
    app.add_exception_handler(CatalogError, refuse_catalog)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, refuse_http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, refuse_invalid)  # type: ignore[arg-type]


def _methods(request: Request) -> list[str]:
    """What can be done at a request's path, sorted."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def invalid(errors: Sequence[Any], body: object) -> RequestError:
    """The problem for pydantic's `errors` about a request with this JSON `body`.

    Args:
        errors: What `ValidationError.errors()` gives.
        body: Value that was validated, to tell names of fields from tags of unions.
    """
    fields = [_field_problem(error, body) for error in errors]
    first = fields[0]
    where = f"{first.pointer}: " if first.pointer else ""
    more = f" ({len(fields) - 1} more)" if len(fields) > 1 else ""
    return RequestError("invalid_request", f"{where}{first.message}{more}", errors=fields)


def _field_problem(error: Any, body: object) -> FieldProblem:  # noqa: ANN401 - a TypedDict
    source, *path = error["loc"]
    message = error["msg"].removeprefix("Value error, ")
    if source != "body":
        return FieldProblem(pointer=_pointer([source, *path]), message=message, code=error["type"])
    parts = _in_body(path, body, missing=error["type"] == "missing")
    return FieldProblem(pointer=_pointer(parts), message=message, code=error["type"])


def _in_body(path: Sequence[str | int], body: object, *, missing: bool) -> list[str | int]:
    """`path` without what pydantic adds to it: the tags of unions, and marks such as `[key]`."""
    parts: list[str | int] = []
    value: Any = body
    for position, part in enumerate(path):
        if isinstance(value, dict):
            known = part in value
        else:
            known = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if known:
            value = value[part]
        if known or (missing and position == len(path) - 1):
            parts.append(part)
    return parts


def _pointer(parts: Sequence[str | int]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


class _AsciiJson(JSONResponse):
    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()
