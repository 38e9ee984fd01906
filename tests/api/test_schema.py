"""The OpenAPI document against the service: Schemathesis makes requests that fit it and requests that do not.

`LEVITY_SCHEMA_EXAMPLES` sets how many for each operation (`make schema`: many).
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from catalog.keys.repository import Keys
from catalog.keys.scopes import EVERYTHING
from catalog.settings import Settings
from catalog.tenancy import Actor
from catalog.tenants.repository import Tenants
from tests.api.harness import serve

EXAMPLES = int(os.environ.get("LEVITY_SCHEMA_EXAMPLES", "8"))
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.allow_header_conformance,
    checks.use_after_free,
]
# An empty body is a body of no bytes, which files can have.
RAW = ("put_upload_content", "put_upload_part")
# Waits for events until its caller goes away.
ENDLESS = "list_job_events"


class Things:
    """One of each thing that paths and bodies can name, made again when a request deleted it."""

    def __init__(self, service):
        self.service = service
        self.ids: dict[str, str] = {}

    def renew(self) -> None:
        service = self.service
        service.end_all_jobs()
        model, dataset = service.model(), service.dataset()
        job = service.job(model_id=model)
        service.publish(job, {"metrics": []}, {"model.onnx": (b"bytes", "application/octet-stream")})
        created = service.http.post("/v1/webhooks", json={"url": "https://8.8.8.8/hook"}).raise_for_status()
        hook = created.json()["webhook"]["id"]
        delivery = service.http.post(f"/v1/webhooks/{hook}/test").json()["id"]
        self.ids = {
            "upload_id": service.http.post("/v1/uploads", json={}).json()["id"],
            "model_id": model,
            "dataset_id": dataset,
            "job_id": job,
            "webhook_id": hook,
            "delivery_id": delivery,
            "name": "model.onnx",
        }


@contextmanager
def running(tmp_path, auth):
    with serve(Settings(data_dir=tmp_path, auth=auth, max_upload_bytes=2**20, max_webhooks=10_000)) as service:
        if auth == "keys":
            with service.database.write() as session:
                Tenants(session).add("ours")
            with service.database.acting(Actor("ours", "operator")).write() as session:
                key = Keys(session).add(name="", scopes=EVERYTHING)[1]
            service.http.headers["authorization"] = f"Bearer {key}"
        yield service


@pytest.mark.long
@pytest.mark.timeout(600 + 10 * EXAMPLES)
@pytest.mark.parametrize("auth", ["none", "keys"])
def test_the_service_does_what_its_document_says(tmp_path, auth):
    with running(tmp_path, auth) as service:
        document = service.http.get("/openapi.json", timeout=60).json()
        # Every request has the key; what happens without one is for `test_keys`.
        for path in document["paths"].values():
            for operation in path.values():
                operation.pop("security", None)
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=service.url)
        schema.config.generation.allow_extra_parameters = False
        things = Things(service)
        for found in schema.get_all_operations():
            operation = found.ok()
            things.renew()
            probe(operation, things, service)


def probe(operation, things, service):
    """Send requests to one operation, of which most name what exists."""
    label = operation.definition.raw["operationId"]
    excluded = [checks.negative_data_rejection] if label in RAW else []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    def send(case, real):
        if real and case.path_parameters:
            case.path_parameters.update({k: v for k, v in things.ids.items() if k in case.path_parameters})
        if real and isinstance(case.body, dict):
            case.body.update(
                {k: v for k, v in things.ids.items() if k.endswith("_id") and isinstance(case.body.get(k), str)}
            )
        if label == ENDLESS:
            case.headers = {k: v for k, v in (case.headers or {}).items() if k.lower() != "accept"}
        case.call_and_validate(
            headers=dict(service.http.headers) if "authorization" in service.http.headers else None,
            checks=CHECKS,
            excluded_checks=excluded,
            timeout=60,
        )

    for mode in schemathesis.GenerationMode:
        run(send, operation, mode)


def run(send, operation, mode):
    sent = given(case=operation.as_strategy(generation_mode=mode), real=st.sampled_from((True, True, False)))(send)
    try:
        sent()
    except Unsatisfiable:
        # What takes nothing cannot be asked wrongly.
        assert mode is schemathesis.GenerationMode.NEGATIVE
