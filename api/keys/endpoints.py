"""`/v1/keys` and `/v1/audit`: who may do what, and who did."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.dependencies import Caller, Key, PageParameters, ServicesParameter
from api.json_body import Json, JsonRoute
from api.keys.schemas import ApiKey, ApiKeyPage, AuditPage, CreateKey, NewApiKey, RotateKey
from api.keys.service import KeyService
from api.openapi import problems

router = APIRouter(prefix="/v1", tags=["keys"], route_class=JsonRoute)


async def _service(services: ServicesParameter, caller: Caller) -> KeyService:
    return KeyService(services, caller)


Keys = Annotated[KeyService, Depends(_service)]


@router.post(
    "/keys",
    operation_id="create_key",
    summary="Make a key",
    status_code=HTTPStatus.CREATED,
    response_model=NewApiKey,
    responses={201: {"headers": {"Location": {"schema": {"type": "string"}}}}, **problems(body=True)},
)
def create_key(body: CreateKey, keys: Keys) -> Json:
    """The answer holds the key itself, which is not shown again."""
    made = keys.create(body)
    headers = {"location": f"/v1/keys/{made['key']['id']}", "cache-control": "no-store"}
    return Json(made, HTTPStatus.CREATED, headers)


@router.get(
    "/keys",
    operation_id="list_keys",
    summary="All keys of the tenant, newest first",
    response_model=ApiKeyPage,
    responses=problems("invalid_request"),
)
def list_keys(page: PageParameters, keys: Keys) -> Json:
    return Json(keys.list(page))


@router.get(
    "/keys/{key_id}",
    operation_id="get_key",
    summary="A key, without its secret",
    response_model=ApiKey,
    responses=problems("key_not_found", "invalid_request"),
)
def get_key(key_id: Key, keys: Keys) -> Json:
    return Json(keys.get(key_id))


@router.post(
    "/keys/{key_id}/rotate",
    operation_id="rotate_key",
    summary="Make a key in the place of another",
    response_model=NewApiKey,
    responses=problems("key_not_found", "key_not_valid", body=True),
)
def rotate_key(key_id: Key, keys: Keys, body: RotateKey | None = None) -> Json:
    """Both are valid until the overlap is over."""
    overlap_seconds = (body or RotateKey()).overlap_seconds
    return Json(keys.rotate(key_id, overlap_seconds=overlap_seconds), headers={"cache-control": "no-store"})


@router.delete(
    "/keys/{key_id}",
    operation_id="revoke_key",
    summary="Revoke a key",
    response_model=ApiKey,
    responses=problems("key_not_found", "invalid_request"),
)
def revoke_key(key_id: Key, keys: Keys) -> Json:
    """It opens nothing any more after two seconds at most; its record stays."""
    return Json(keys.revoke(key_id))


@router.get(
    "/audit",
    operation_id="list_audit_log",
    summary="What was done by whom, newest first",
    response_model=AuditPage,
    responses=problems("invalid_request"),
)
def list_audit_log(
    page: PageParameters,
    keys: Keys,
    subject: Annotated[str | None, Query(max_length=40, description="Only what was done to this id.")] = None,
) -> Json:
    return Json(keys.audit(page, subject=subject))
