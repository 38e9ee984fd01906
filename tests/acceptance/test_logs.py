"""What the service's processes write while a job goes through them."""

from __future__ import annotations

import json

import httpx

from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, PRUNE
from tests.acceptance.processes import eventually


def lines_of(service, name):
    """What processes of this name wrote; every line is JSON."""
    logs = sorted(service.folder.glob(f"*-{name}.log"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def test_one_request_can_be_followed(service, inputs):
    body = {"model_id": inputs.model, "pipeline": list(PRUNE), "benchmark": BRIEF}
    answer = httpx.post(
        f"{service.client.base_url}/v1/jobs", json=body, headers={"x-request-id": "follow-me"}, trust_env=False
    )
    assert answer.headers["x-request-id"] == "follow-me"
    job_id = answer.json()["id"]
    service.assert_settled(service.client.wait(job_id, timeout=60), "succeeded")

    def ended():
        found = [line for line in lines_of(service, "worker-cpu") if line.get("job_id") == job_id]
        return found if any("succeeded" in line["message"] for line in found) else None

    for line in eventually(ended, what="the worker's line about the end"):
        assert (line["request_id"], line["attempt"], line["tenant"]) == ("follow-me", 1, "default")
        assert line["process"] == "worker-cpu"
    lines = lines_of(service, "api")
    mine = [line for line in lines if line.get("request_id") == "follow-me"]
    assert {line["logger"] for line in mine} == {"api.jobs.service", "uvicorn.access"}
    assert [line["job_id"] for line in mine if line["logger"] == "api.jobs.service"] == [job_id]
    assert {line["tenant"] for line in mine} == {"default"}
    assert any("POST /v1/jobs" in line["message"] and "202" in line["message"] for line in mine)
    assert {line["process"] for line in lines} == {"api"}
    # What uvicorn says of itself is JSON too; requests that name a job are found by it.
    assert any("Started server process" in line["message"] for line in lines)
    assert any(line.get("job_id") == job_id and "GET" in line["message"] for line in lines)


def test_a_failed_job_is_found_by_its_code(service, inputs):
    model = service.client.create_model(DIGITS / "digits-cnn.onnx")
    job = service.client.submit(model.id, [{"type": "prune", "amount": 0.5, "exclude": ["nothing-like-it"]}])
    job = service.client.wait(job.id, timeout=60)
    assert job.state == "failed"
    error = service.assert_settled(job, "failed").error
    assert error["code"] in error["log_tail"]
    assert eventually(
        lambda: [
            line
            for line in lines_of(service, "worker-cpu")
            if line.get("job_id") == job.id and error["code"] in line["message"]
        ]
    )
