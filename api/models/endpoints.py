"""`/v1/models`: neural networks, as uploaded and inspected."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.content import BYTES, respond
from api.dependencies import Key, PageParameters, RequestId, ServicesParameter, WaitSeconds
from api.inspection import answer, answer_created
from api.json_body import Json, JsonRoute
from api.models.schemas import CreateModel, Model, ModelPage
from api.models.service import ModelService
from api.openapi import CREATED_OR_ACCEPTED, OVER_QUOTA, problems

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=JsonRoute)


async def _service(services: ServicesParameter) -> ModelService:
    return ModelService(services)


Models = Annotated[ModelService, Depends(_service)]


@router.post(
    "",
    operation_id="create_model",
    summary="Register a model",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Model,
    responses={
        201: {"model": Model, **CREATED_OR_ACCEPTED[201]},
        202: CREATED_OR_ACCEPTED[202],
        **problems("upload_not_found", "upload_incomplete", "inspection_failed", *OVER_QUOTA, body=True),
    },
)
async def create_model(
    body: CreateModel, models: Models, services: ServicesParameter, request_id: RequestId, seconds: WaitSeconds
) -> Json:
    """It is inspected next. `Prefer: wait=N` waits for that: 201 once it is ready, 422 when it is rejected."""
    model = await run_sync(partial(models.create, body, request_id=request_id))
    return await answer_created(services, "/v1/models", model, models.get, seconds)


@router.get(
    "",
    operation_id="list_models",
    summary="All models, newest first",
    response_model=ModelPage,
    responses=problems("invalid_request"),
)
def list_models(page: PageParameters, models: Models) -> Json:
    return Json(models.list(page))


@router.get(
    "/{model_id}",
    operation_id="get_model",
    summary="A model and what inspection found",
    response_model=Model,
    responses=problems("model_not_found", "invalid_request"),
)
async def get_model(model_id: Key, models: Models, services: ServicesParameter, seconds: WaitSeconds) -> Json:
    return await answer(services, partial(models.get, model_id), seconds)


@router.get(
    "/{model_id}/content",
    operation_id="get_model_content",
    summary="The bytes of a model's graph",
    response_class=Response,
    responses={
        200: BYTES,
        206: {**BYTES, "description": "The range that was asked for."},
        304: {"description": "The caller has it already."},
        **problems(
            "model_not_found",
            "model_not_ready",
            "model_rejected",
            "range_not_satisfiable",
            "invalid_request",
            "store_unavailable",
        ),
    },
)
@router.head(
    "/{model_id}/content",
    operation_id="head_model_content",
    summary="Size and hash of a model's graph",
    response_class=Response,
    responses={
        200: {"headers": BYTES["headers"]},
        **problems("model_not_found", "model_not_ready", "model_rejected", "invalid_request", "store_unavailable"),
    },
)
def get_model_content(model_id: Key, request: Request, models: Models, services: ServicesParameter) -> Response:
    """The ONNX file that jobs work on, also where the upload was another format: a `.levity` file comes back decoded.

    Supports Range and If-Range (one range), and If-None-Match. The ETag is the file's sha256.
    """
    graph = models.graph(model_id)
    return respond(graph, services.blobs, request.headers, body=request.method == "GET", missing="model_not_found")


@router.delete(
    "/{model_id}",
    operation_id="delete_model",
    summary="Forget a model",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=problems("model_not_found", "in_use", "invalid_request"),
)
def delete_model(model_id: Key, models: Models) -> Response:
    """Refused while an unfinished job needs it. Finished jobs and their artifacts stay."""
    models.delete(model_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)
