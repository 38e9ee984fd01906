"""`/v1/steps` and `/v1/capabilities`."""

from __future__ import annotations

from fastapi import APIRouter

from api.capabilities import service
from api.capabilities.schemas import Capabilities, Steps
from api.dependencies import Caller, ServicesParameter
from api.json_body import Json
from api.openapi import problems

router = APIRouter(prefix="/v1", tags=["capabilities"])


@router.get(
    "/steps",
    operation_id="list_steps",
    summary="Every step, with its JSON Schema and defaults",
    response_model=Steps,
    responses=problems(),
)
def list_steps() -> Json:
    return Json(service.steps())


@router.get(
    "/capabilities",
    operation_id="get_capabilities",
    summary="What this deployment can do",
    response_model=Capabilities,
    responses=problems(),
)
def get_capabilities(services: ServicesParameter, caller: Caller) -> Json:
    return Json(service.capabilities(services, caller))
