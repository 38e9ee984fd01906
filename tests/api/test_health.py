from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.capabilities.schemas import Capabilities
from catalog.jobs.states import Queue
from catalog.settings import Settings
from catalog.workers.repository import Workers
from catalog.workers.tables import WorkerRow
from tests.api.harness import assert_problem, serve


def fail(*_args):
    raise ConnectionError("down")


def test_alive_whatever_happens(service, monkeypatch):
    monkeypatch.setattr("catalog.db.Database.ping", fail)
    monkeypatch.setattr("catalog.db.Database.read", fail)
    assert service.http.get("/livez").json() == {"status": "alive"}


def test_ready(http):
    checks = {"database": "ok", "store": "ok", "broker": "ok"}
    assert http.get("/readyz").json() == {"status": "ready", "checks": checks}


@pytest.mark.parametrize(
    ("broken", "what"), [("catalog.db.Database.ping", "database"), ("catalog.blobs.Blobs.ping", "store")]
)
def test_not_ready(http, monkeypatch, broken, what):
    monkeypatch.setattr(broken, fail)
    assert what in assert_problem(http.get("/readyz"), 503, "not_ready")["detail"]


def test_a_broker_that_is_down_degrades(tmp_path):
    """Jobs are taken all the same: sweepers find what nobody was woken for."""
    settings = Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")
    with serve(settings) as service:
        ready = service.http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert ready.json()["checks"]["broker"] == "failed"
        assert service.submit().status_code == 202


def test_metrics(service):
    def metrics():
        families = text_string_to_metric_families(service.http.get("/metrics").text)
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    before = metrics()
    service.upload(b"x" * 1000)
    service.job()
    service.http.get("/v1/jobs/none")
    service.http.get("/nowhere")
    after = metrics()

    def grown(*key):
        return after[key] - before.get(key, 0)

    assert grown("levity_upload_bytes_total") == 1000 + 10
    assert grown("levity_http_requests_total", "GET", "/v1/jobs/{job_id}", "404") == 1
    assert grown("levity_http_requests_total", "GET", "unmatched", "404") == 1
    assert grown("levity_http_requests_total", "POST", "/v1/jobs", "202") == 1
    assert grown("levity_http_request_seconds_count", "POST", "/v1/jobs") == 1
    assert grown("levity_queue_depth", "cpu") == 1
    assert after["levity_jobs", "compress", "cpu", "queued"] == 1
    assert 0 <= after["levity_queue_oldest_seconds", "cpu"] < 60
    assert after["levity_queue_oldest_seconds", "gpu"] == 0
    assert after["levity_workers", "cpu"] == 0


def test_capabilities(service):
    host = {"isa": ["avx", "avx2"], "gpus": [], "sandbox": "bubblewrap", "providers": ["cpu"]}
    with service.database.write() as session:
        workers = Workers(session)
        workers.register("wrk_1", host="a", queue=Queue.CPU, concurrency=1, capabilities=host)
        workers.register("wrk_2", host="b", queue=Queue.CPU, concurrency=1, capabilities={**host, "isa": ["avx"]})
        gpu = {**host, "gpus": [{"name": "H100", "memory_bytes": 2**36}], "providers": ["cpu", "cuda"]}
        workers.register("wrk_3", host="c", queue=Queue.GPU, concurrency=1, capabilities=gpu)
        workers.register("wrk_4", host="d", queue=Queue.CPU, concurrency=1, capabilities=host)
    service.change(WorkerRow, "wrk_4", seen_at=0.0)
    body = service.http.get("/v1/capabilities").json()
    Capabilities.model_validate(body)
    assert body["queues"] == [
        {"name": "cpu", "workers": 2, "providers": ["cpu"]},
        {"name": "gpu", "workers": 1, "providers": ["cpu", "cuda"]},
    ]
    assert body["isa"] == ["avx"]
    assert body["gpus"] == [{"name": "H100", "memory_bytes": 2**36}]
    assert body["sandbox"] == ["bubblewrap"]
    assert [worker["id"] for worker in body["workers"]] == ["wrk_1", "wrk_2", "wrk_3"]
    assert body["limits"]["max_upload_bytes"] == service.settings.max_upload_bytes
    assert body["formats"] == {"models": ["onnx"], "datasets": ["safetensors", "npz", "images"]}
    with service.database.write() as session:
        Workers(session).forget_silent(seconds=-10)


def test_the_service_imports_nothing_heavy(tmp_path):
    """Neither the module nor the running application loads what only workers need."""
    script = f"""
import asyncio, sys
from api.app import create_app
from catalog.settings import Settings
app = create_app(Settings(data_dir={str(tmp_path)!r}))
async def start():
    async with app.router.lifespan_context(app):
        app.openapi()
asyncio.run(start())
heavy = {{"torch", "onnx", "onnxruntime", "numpy", "PIL"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
