"""`/v1/usage`: what the caller's tenant uses and may use."""

from __future__ import annotations

from fastapi import APIRouter

from api.dependencies import Caller, ServicesParameter
from api.json_body import Json, JsonRoute
from api.openapi import problems
from api.usage.schemas import Usage, usage_json
from catalog.tenants.usage import Quotas

router = APIRouter(prefix="/v1/usage", tags=["keys"], route_class=JsonRoute)


@router.get(
    "",
    operation_id="get_usage",
    summary="What the tenant uses, and its limits",
    response_model=Usage,
    responses=problems(),
)
def get_usage(services: ServicesParameter, caller: Caller) -> Json:
    with services.database.read() as session:
        quotas = Quotas(session)
        answer = usage_json(
            caller.tenant,
            quotas.usage(),
            quotas.limits(),
            requests_per_minute=services.settings.requests_per_minute,
        )
    return Json(answer)
