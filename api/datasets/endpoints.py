"""`/v1/datasets`: samples, as uploaded and inspected."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends
from starlette.responses import Response

from api.datasets.schemas import CreateDataset, Dataset, DatasetPage
from api.datasets.service import DatasetService
from api.dependencies import Key, PageParameters, RequestId, ServicesParameter, WaitSeconds
from api.inspection import answer, answer_created
from api.json_body import Json, JsonRoute
from api.openapi import CREATED_OR_ACCEPTED, OVER_QUOTA, problems

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=JsonRoute)


async def _service(services: ServicesParameter) -> DatasetService:
    return DatasetService(services)


Datasets = Annotated[DatasetService, Depends(_service)]


@router.post(
    "",
    operation_id="create_dataset",
    summary="Register a dataset",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Dataset,
    responses={
        201: {"model": Dataset, **CREATED_OR_ACCEPTED[201]},
        202: CREATED_OR_ACCEPTED[202],
        **problems("upload_not_found", "upload_incomplete", "inspection_failed", *OVER_QUOTA, body=True),
    },
)
async def create_dataset(
    body: CreateDataset, datasets: Datasets, services: ServicesParameter, request_id: RequestId, seconds: WaitSeconds
) -> Json:
    """It is inspected next. `Prefer: wait=N` waits for that: 201 once it is ready, 422 when it is rejected."""
    dataset = await run_sync(partial(datasets.create, body, request_id=request_id))
    return await answer_created(services, "/v1/datasets", dataset, datasets.get, seconds)


@router.get(
    "",
    operation_id="list_datasets",
    summary="All datasets, newest first",
    response_model=DatasetPage,
    responses=problems("invalid_request"),
)
def list_datasets(page: PageParameters, datasets: Datasets) -> Json:
    return Json(datasets.list(page))


@router.get(
    "/{dataset_id}",
    operation_id="get_dataset",
    summary="A dataset and what inspection found",
    response_model=Dataset,
    responses=problems("dataset_not_found", "invalid_request"),
)
async def get_dataset(dataset_id: Key, datasets: Datasets, services: ServicesParameter, seconds: WaitSeconds) -> Json:
    return await answer(services, partial(datasets.get, dataset_id), seconds)


@router.delete(
    "/{dataset_id}",
    operation_id="delete_dataset",
    summary="Forget a dataset",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=problems("dataset_not_found", "in_use", "invalid_request"),
)
def delete_dataset(dataset_id: Key, datasets: Datasets) -> Response:
    """Refused while an unfinished job needs it. Finished jobs and their artifacts stay."""
    datasets.delete(dataset_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)
