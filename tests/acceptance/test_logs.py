"""What the service's processes write while a job goes through them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import httpx

from catalog.webhooks.signatures import new_secret
from levity import Levity
from tests.acceptance import processes
from tests.acceptance.backends import backend
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, PRUNE, Service
from tests.acceptance.processes import eventually
from tests.receiver import unused_port


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
    # The tests ask for it until it answers; while all is well that is no line.
    assert not any("/readyz" in line["message"] and "200" in line["message"] for line in lines)
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


def test_no_process_writes_a_secret(tmp_path):
    """Not even at level DEBUG, where every library tells what it does, nor when the database refuses."""
    processes.adopt_orphans()
    folder = tmp_path / "keys"
    folder.mkdir()
    with backend("sqlite+files", folder / "data") as chosen:
        service = Service(folder, chosen, folder / "data")
        service.environment |= {"LEVITY_AUTH": "keys", "LEVITY_LOG_LEVEL": "DEBUG", "LEVITY_STORE_URL": ""}
        make = [sys.executable, "-m", "catalog", "keys", "create"]
        done = subprocess.run(make, env=service.environment, capture_output=True, text=True, timeout=60, check=True)
        key = re.search(r"lv_[0-9a-f]{12}_[\w-]{43}", done.stdout)[0]
        secret, wrong = new_secret(), key[:-4] + "AAAA"
        service.start_api()
        for queue in ("cpu", "io"):
            service.start_worker(queue)
        # A worker whose database is not there says so, and would with its password.
        service.start_worker(database_url="postgresql+psycopg://levity:password-of-the-db@127.0.0.1:1/levity")
        try:
            with Levity(service.client.base_url, api_key=key) as client:
                model = client.create_model(DIGITS / "digits-cnn.onnx")
                url = f"http://127.0.0.1:{unused_port()}/"
                webhook = {"url": url, "secret": secret, "events": ["job.succeeded"]}
                job = client.submit(model.id, PRUNE, benchmark=BRIEF, webhook=webhook)
                assert client.wait(job.id, timeout=60).state == "succeeded"
            refused = httpx.get(
                f"{service.client.base_url}/v1/jobs", headers={"authorization": f"Bearer {wrong}"}, trust_env=False
            )
            assert refused.status_code == 401
            eventually(lambda: _tells_of_delivery(folder), what="the failed delivery")
        finally:
            service.stop()
        logs = "".join(path.read_text() for path in folder.glob("*.log"))
    assert '"level": "DEBUG"' in logs
    assert "port 1 failed" in logs
    for hidden in (key[16:], wrong[16:], secret.removeprefix("whsec_"), "password-of-the-db"):
        assert hidden not in logs


def _tells_of_delivery(folder):
    return any('"logger": "workers.webhooks"' in path.read_text() for path in folder.glob("*worker-io.log"))
