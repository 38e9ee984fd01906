"""`/v1/jobs`: runs of a pipeline on a model, their events and what came out."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from api.content import BYTES, respond
from api.dependencies import Key, PageParameters, RequestId, ServicesParameter, WaitSeconds
from api.jobs import events
from api.jobs.schemas import ArtifactList, AttemptList, CreateJob, EventPage, Job, JobPage
from api.jobs.service import JobService
from api.json_body import Json, JsonRoute
from api.openapi import OVER_QUOTA, problems
from api.waiting import wait_until
from catalog.jobs.states import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)

_LAST_SEQ = 2**31 - 1
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


async def _service(services: ServicesParameter) -> JobService:
    return JobService(services)


Jobs = Annotated[JobService, Depends(_service)]


@router.post(
    "",
    operation_id="create_job",
    summary="Queue a job",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Job,
    responses={
        202: {
            "headers": {
                "Location": {"schema": {"type": "string"}},
                "Idempotency-Replayed": {"schema": {"type": "string"}},
                **_RETRY_AFTER,
            }
        },
        **problems(
            "model_not_found",
            "dataset_not_found",
            "job_not_found",
            "model_rejected",
            "model_not_ready",
            "dataset_rejected",
            "calibration_data_missing",
            "training_data_missing",
            "student_missing",
            "student_not_used",
            "dataset_mismatch",
            "labels_out_of_range",
            "idempotency_key_reused",
            *OVER_QUOTA,
            body=True,
        ),
    },
)
def create_job(
    body: CreateJob,
    jobs: Jobs,
    request_id: RequestId,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="A second request with the same key and body gives the same job instead of another one.",
        ),
    ] = None,
) -> Json:
    """All that can be checked before the job runs is checked here."""
    job, replayed = jobs.submit(body, key=idempotency_key, request_id=request_id)
    headers = {"location": f"/v1/jobs/{job['id']}", "retry-after": "1"}
    if replayed:
        headers["idempotency-replayed"] = "true"
    return Json(job, HTTPStatus.ACCEPTED, headers)


@router.get(
    "",
    operation_id="list_jobs",
    summary="Jobs, newest first",
    response_model=JobPage,
    responses=problems("invalid_request"),
)
def list_jobs(
    page: PageParameters,
    jobs: Jobs,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    model_id: Annotated[Key | None, Query(description="Only jobs on this model.")] = None,
) -> Json:
    return Json(jobs.list(page, state=state, model_id=model_id))


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="A job, where it stands and what came out",
    response_model=Job,
    responses={200: {"headers": _RETRY_AFTER}, **problems("job_not_found", "invalid_request")},
)
async def get_job(job_id: Key, jobs: Jobs, services: ServicesParameter, seconds: WaitSeconds) -> Json:
    """`Prefer: wait=N` holds the answer back until the job has ended."""
    look = partial(jobs.get, job_id)
    headers = {}
    if seconds:
        headers["preference-applied"] = f"wait={seconds}"
        job = await wait_until(look, _ended, seconds=seconds, stopping=services.stopping)
    else:
        job = await run_sync(look)
    if not _ended(job):
        headers["retry-after"] = "1"
    return Json(job, headers=headers)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Ask a job to stop",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "The job had ended before."},
        **problems("job_not_found", "invalid_request"),
    },
)
def cancel_job(job_id: Key, jobs: Jobs) -> Json:
    """A queued job has ended on return, a running one does soon after."""
    job, ended = jobs.cancel(job_id)
    return Json(job, HTTPStatus.OK if ended else HTTPStatus.ACCEPTED)


@router.post(
    "/{job_id}/retry",
    operation_id="retry_job",
    summary="Queue a job again",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Job,
    responses={
        202: {"headers": _RETRY_AFTER},
        **problems(
            "job_not_found",
            "job_not_retryable",
            "model_not_found",
            "dataset_not_found",
            "model_rejected",
            "model_not_ready",
            "dataset_rejected",
            "invalid_request",
            *OVER_QUOTA,
        ),
    },
)
def retry_job(job_id: Key, jobs: Jobs) -> Json:
    """For jobs that failed, were cancelled or expired. Steps that were finished are not computed again."""
    return Json(jobs.retry(job_id), HTTPStatus.ACCEPTED, {"retry-after": "1"})


@router.delete(
    "/{job_id}",
    operation_id="delete_job",
    summary="Forget a job and its artifacts",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=problems("job_not_found", "job_not_finished", "invalid_request"),
)
def delete_job(job_id: Key, jobs: Jobs) -> Response:
    jobs.delete(job_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.get(
    "/{job_id}/attempts",
    operation_id="list_job_attempts",
    summary="Each try at a job",
    response_model=AttemptList,
    responses=problems("job_not_found", "invalid_request"),
)
def list_job_attempts(job_id: Key, jobs: Jobs) -> Json:
    return Json(jobs.attempts(job_id))


@router.get(
    "/{job_id}/events",
    operation_id="list_job_events",
    summary="What happened to a job, as a page or as it happens",
    response_model=EventPage,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "For a stream: the job has ended and there is nothing after `Last-Event-ID`."},
        **problems("job_not_found", "invalid_request"),
    },
)
async def list_job_events(  # noqa: PLR0917 - FastAPI calls it by name
    job_id: Key,
    jobs: Jobs,
    services: ServicesParameter,
    after: Annotated[int, Query(ge=0, le=_LAST_SEQ, description="Only events above this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events on a page.")] = 100,
    accept: Annotated[str, Header(description="`text/event-stream` for a stream up to the terminal event.")] = "",
    last_event_id: Annotated[
        int | None, Header(ge=0, le=_LAST_SEQ, description="Like `after`, for a stream that is resumed.")
    ] = None,
) -> Response:
    if "text/event-stream" in accept:
        return await events.stream(services, job_id, after if last_event_id is None else last_event_id)
    return Json(await run_sync(partial(jobs.events, job_id, after=after, limit=limit)))


@router.get(
    "/{job_id}/artifacts",
    operation_id="list_job_artifacts",
    summary="Files that came out",
    response_model=ArtifactList,
    responses=problems("job_not_found", "invalid_request"),
)
def list_job_artifacts(job_id: Key, jobs: Jobs) -> Json:
    return Json(jobs.artifacts(job_id))


@router.get(
    "/{job_id}/artifacts/{name}",
    operation_id="get_job_artifact",
    summary="The bytes of a file that came out",
    response_class=Response,
    responses={
        200: BYTES,
        206: {**BYTES, "description": "The range that was asked for."},
        304: {"description": "The caller has it already."},
        **problems(
            "job_not_found", "artifact_not_found", "range_not_satisfiable", "invalid_request", "store_unavailable"
        ),
    },
)
@router.head(
    "/{job_id}/artifacts/{name}",
    operation_id="head_job_artifact",
    summary="Size and hash of a file that came out",
    response_class=Response,
    responses={
        200: {"headers": BYTES["headers"]},
        **problems("job_not_found", "artifact_not_found", "invalid_request", "store_unavailable"),
    },
)
def get_job_artifact(job_id: Key, name: Key, request: Request, jobs: Jobs, services: ServicesParameter) -> Response:
    """Supports Range and If-Range (one range), and If-None-Match. The ETag is the file's sha256."""
    row = jobs.artifact(job_id, name)
    return respond(row, services.blobs, request.headers, body=request.method == "GET", missing="artifact_not_found")


def _ended(job: dict[str, Any]) -> bool:
    return JobState(job["state"]).terminal
