"""What models and datasets share: both are inspected by a job of their own before they can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus

from anyio.to_thread import run_sync
from sqlalchemy.orm import Session

from api.dependencies import Services
from api.errors import RequestError
from api.json_body import Json as JsonResponse
from api.waiting import wait_until
from catalog.db import Json, after_commit
from catalog.errors import Conflict
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from catalog.tenants.usage import Quotas

_INSPECTING = "inspecting"
_REJECTED = "rejected"


def queue_inspection(
    session: Session,
    services: Services,
    kind: JobKind,
    *,
    name: str,
    request_id: str,
    model_id: str | None = None,
    datasets: Mapping[str, str] | None = None,
) -> None:
    """Queue an inspection in the running transaction, and wake a worker when it commits."""
    Quotas(session).admit_job()
    Jobs(session).add(
        NewJob(
            kind=kind,
            queue=Queue.IO,
            max_attempts=services.settings.max_attempts,
            time_limit_seconds=services.settings.inspection_time_limit_seconds,
            model_id=model_id,
            datasets=datasets or {},
            name=name,
            request_id=request_id,
        )
    )
    after_commit(session, partial(services.wakeups.wake, Queue.IO))


async def answer_created(
    services: Services, path: str, subject: Json, get: Callable[[str], Json], seconds: int
) -> JsonResponse:
    """The answer to a registration, held back until the inspection is over or `seconds` have passed.

    Args:
        services: The process's parts.
        path: Where such subjects are, such as `/v1/models`.
        subject: What was registered.
        get: Looks it up again.
        seconds: How long the caller wants to wait.

    Raises:
        RequestError: The inspection rejected it; the code is the inspection's.
    """
    location = f"{path}/{subject['id']}"
    headers = {"location": location}
    if seconds:
        headers["preference-applied"] = f"wait={seconds}"
        subject = await wait_until(
            partial(get, subject["id"]),
            lambda found: found["state"] != _INSPECTING,
            seconds=seconds,
            stopping=services.stopping,
        )
    if subject["state"] == _INSPECTING:
        return JsonResponse(subject, HTTPStatus.ACCEPTED, {**headers, "retry-after": "1"})
    if subject["state"] == _REJECTED:
        error = subject["error"]
        raise RequestError(error["code"], error["message"], headers=headers, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    return JsonResponse(subject, HTTPStatus.CREATED, headers)


async def answer(services: Services, get: Callable[[], Json], seconds: int) -> JsonResponse:
    """The subject itself, held back in the same way."""
    headers = {"preference-applied": f"wait={seconds}"} if seconds else {}
    subject = await (
        wait_until(get, lambda found: found["state"] != _INSPECTING, seconds=seconds, stopping=services.stopping)
        if seconds
        else run_sync(get)
    )
    if subject["state"] == _INSPECTING:
        headers["retry-after"] = "1"
    return JsonResponse(subject, headers=headers)


def unused(what: str, job_ids: Sequence[str]) -> None:
    """Refuse to delete what unfinished jobs need."""
    if job_ids:
        raise Conflict(f"{what} is needed by unfinished jobs: {', '.join(job_ids)}.", code="in_use")
