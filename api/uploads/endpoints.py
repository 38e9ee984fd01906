"""`/v1/uploads`: bytes on their way in."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request
from starlette.responses import Response

from api.dependencies import Key, ServicesParameter
from api.json_body import Json, JsonRoute
from api.openapi import problems
from api.uploads import digest
from api.uploads.schemas import MAX_PARTS, CompleteUpload, CreateUpload, Part, Upload
from api.uploads.service import UploadService, contiguous_bytes

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=JsonRoute)

_RAW_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_RECEIVING = (
    "upload_not_found",
    "upload_complete",
    "upload_too_large",
    "upload_stalled",
    "digest_mismatch",
    "size_mismatch",
    "store_full",
    "store_unavailable",
    "bytes_gone",
    "storage_used_up",
    "invalid_request",
)


async def _service(services: ServicesParameter) -> UploadService:
    return UploadService(services)


Uploads = Annotated[UploadService, Depends(_service)]
ContentDigest = Annotated[
    str | None,
    Header(description="`sha-256=:base64:` of the body (RFC 9530); other bytes are refused."),
]


@router.post(
    "",
    operation_id="create_upload",
    summary="Announce an upload",
    status_code=HTTPStatus.CREATED,
    response_model=Upload,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems("upload_too_large", "store_full", "storage_used_up", body=True),
    },
)
def create_upload(body: CreateUpload, uploads: Uploads) -> Json:
    """Then send its bytes: at once to `content`, or in parts."""
    upload = uploads.create(body)
    return Json(upload, HTTPStatus.CREATED, {"location": f"/v1/uploads/{upload['id']}"})


@router.get(
    "/{upload_id}",
    operation_id="get_upload",
    summary="What arrived",
    response_model=Upload,
    responses=problems("upload_not_found", "invalid_request"),
)
def get_upload(upload_id: Key, uploads: Uploads) -> Json:
    return Json(uploads.get(upload_id))


@router.head(
    "/{upload_id}",
    operation_id="head_upload",
    summary="How much arrived",
    response_class=Response,
    responses={
        200: {
            "headers": {
                "Upload-Offset": {
                    "description": "Bytes that are there without a gap, from the start.",
                    "schema": {"type": "integer"},
                },
                "Upload-Complete": {"description": "`?1` when complete.", "schema": {"type": "string"}},
                "ETag": {"description": "The sha256 of a complete upload.", "schema": {"type": "string"}},
            }
        },
        **problems("upload_not_found", "invalid_request"),
    },
)
def head_upload(upload_id: Key, uploads: Uploads) -> Response:
    upload = uploads.get(upload_id)
    complete = upload["state"] == "complete"
    headers = {
        "upload-offset": str(contiguous_bytes(upload)),
        "upload-complete": "?1" if complete else "?0",
        "cache-control": "no-store",
    }
    if complete:
        headers["etag"] = f'"{upload["sha256"]}"'
    return Response(headers=headers)


@router.put(
    "/{upload_id}/content",
    operation_id="put_upload_content",
    summary="Send all bytes at once",
    response_model=Upload,
    responses=problems(*_RECEIVING),
    openapi_extra=_RAW_BODY,
)
async def put_upload_content(
    upload_id: Key, request: Request, uploads: Uploads, content_digest: ContentDigest = None
) -> Json:
    """Completes the upload. When it fails, the upload stays open. Sending the same bytes again does no harm."""
    sha256 = digest.parse(content_digest)
    return Json(await uploads.put_content(upload_id, request, sha256=sha256))


@router.put(
    "/{upload_id}/parts/{number}",
    operation_id="put_upload_part",
    summary="Send one part",
    response_model=Part,
    responses=problems(*_RECEIVING),
    openapi_extra=_RAW_BODY,
)
async def put_upload_part(
    upload_id: Key,
    number: Annotated[int, Path(ge=1, le=MAX_PARTS)],
    request: Request,
    uploads: Uploads,
    content_digest: ContentDigest = None,
) -> Json:
    """Parts can be sent in any order and several at once; sending a number again replaces it."""
    sha256 = digest.parse(content_digest)
    part = await uploads.put_part(upload_id, number, request, sha256=sha256)
    return Json(part)


@router.post(
    "/{upload_id}/complete",
    operation_id="complete_upload",
    summary="Join the parts",
    response_model=Upload,
    responses=problems(
        "upload_not_found",
        "upload_complete",
        "part_missing",
        "digest_mismatch",
        "size_mismatch",
        "store_full",
        "store_unavailable",
        "bytes_gone",
        "storage_used_up",
        body=True,
    ),
)
def complete_upload(upload_id: Key, uploads: Uploads, body: CompleteUpload | None = None) -> Json:
    """Once complete, completing again with the same hash changes nothing."""
    return Json(uploads.complete(upload_id, body or CompleteUpload()))


@router.delete(
    "/{upload_id}",
    operation_id="delete_upload",
    summary="Forget an upload",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=problems("upload_not_found", "invalid_request", "store_unavailable"),
)
def delete_upload(upload_id: Key, uploads: Uploads) -> Response:
    """Models and datasets that were made from it stay."""
    uploads.delete(upload_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)
