"""The OpenAPI document: what FastAPI derives, plus the errors as they are really sent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from api.authentication import required_scope
from api.dependencies import Document
from api.errors import MEDIA_TYPE, STATUS, FieldProblem, Problem, title

_REFERENCE = "#/components/schemas/{model}"
# Every request can meet these.
_ALWAYS = ("host_not_allowed", "internal_error", "database_away")
_BODY = ("malformed_json", "request_stalled", "body_too_large", "unsupported_media_type", "invalid_request")

OVER_QUOTA = ("too_many_queued_jobs", "worker_time_used_up", "storage_used_up")
"""What everything that queues work can meet."""

Responses = dict[int | str, dict[str, Any]]


def problems(*codes: str, body: bool = False) -> Responses:
    """Declarations of the errors that an operation can answer with; `body`: it takes a JSON body."""
    every = {*codes, *_ALWAYS, *(_BODY if body else ())}
    ordered = sorted(every, key=lambda code: (STATUS[code], code))
    return {
        int(status): _response(int(status), list(group)) for status, group in groupby(ordered, key=STATUS.__getitem__)
    }


def _response(status: int, codes: list[str]) -> dict[str, Any]:
    examples = {
        code: {
            "value": {
                "type": f"urn:levity:problem:{code}",
                "title": title(code),
                "status": status,
                "detail": f"{title(code)}.",
                "code": code,
                "instance": "/v1/…",
                "request_id": "5b0a5bf1c1f64a6f9a3f0d9c5ea4a3a1",
            }
        }
        for code in codes
    }
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model=Problem.__name__)}, "examples": examples}}
    return {"description": " or ".join(f"`{code}`" for code in codes), "content": content}


def document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """A replacement for `app.openapi`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                tags=app.openapi_tags,
                license_info=app.license_info,
                routes=app.routes,
            )
            _, definitions = models_json_schema(
                [(Problem, "serialization"), (FieldProblem, "serialization")], ref_template=_REFERENCE
            )
            schemas = schema["components"]["schemas"]
            schemas.update(definitions["$defs"])
            for model in Document.__subclasses__():
                # FastAPI leaves every null out of the document, those in examples too.
                extra = model.model_config.get("json_schema_extra")
                if isinstance(extra, dict) and model.__name__ in schemas:
                    schemas[model.__name__].update(extra)
            _declare_keys(schema)
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi


def _declare_keys(schema: dict[str, Any]) -> None:
    """Say of every operation which scope a key needs."""
    description = "An API key, `lv_…`. A service without keys (`LEVITY_AUTH=none`) needs none on its own machine."
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": description}}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            scope = required_scope(method.upper(), path)
            if scope is not None:
                operation["security"] = [{"key": [scope.value]}]
                operation["responses"]["401"] = _response(401, ["unauthenticated"])
                operation["responses"]["403"] = _response(
                    403, ["insufficient_scope", "keys_required", *_codes(operation["responses"].get("403"))]
                )
                operation["responses"]["429"] = _response(
                    429, ["rate_limited", *_codes(operation["responses"].get("429"))]
                )


def _codes(response: dict[str, Any] | None) -> list[str]:
    """Codes that `_response` declared."""
    return [] if response is None else list(response["content"][MEDIA_TYPE]["examples"])


_LOCATION = {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}
CREATED_OR_ACCEPTED: Responses = {
    201: {"description": "Inspected and ready; only with `Prefer: wait=N`.", "headers": _LOCATION},
    202: {
        "description": "Registered; the inspection is queued.",
        "headers": {**_LOCATION, "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    },
}
