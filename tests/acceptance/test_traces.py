"""One trace from a request over the queue and the worker to the steps in the child and the webhook."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from catalog.webhooks.signatures import new_secret
from tests.acceptance import processes
from tests.acceptance.backends import NAMES, backend
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, Service
from tests.acceptance.processes import eventually
from tests.receiver import Receiver

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
PIPELINE = [{"type": "prune", "amount": 0.5}, {"type": "quantize", "mode": "dynamic"}]


class Collector:
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    def __init__(self):
        self.spans = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        collector.spans += [(about["service.name"], span) for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def named(self, name, trace=TRACE):
        return [span for _, span in self.spans if span.name == name and span.trace_id.hex() == trace]

    def one(self, name):
        """The only span of this name in the trace, once it has arrived."""
        (span,) = eventually(lambda: self.named(name), seconds=30, what=f"a span {name!r}")
        return span


def attributes(span):
    return {entry.key: entry.value.string_value or entry.value.int_value for entry in span.attributes}


@pytest.fixture(scope="module", params=NAMES[:2])
def backend_name(request):
    return request.param


@pytest.fixture(scope="module")
def collector(backend_name):
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def traced(backend_name, tmp_path_factory, collector):
    """A service that sends its traces to the collector."""
    processes.adopt_orphans()
    folder = tmp_path_factory.mktemp("traced")
    with backend(backend_name, folder / "data") as chosen:
        service = Service(folder, chosen, folder / "data")
        service.environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=collectors-secret",
        }
        service.ensure()
        yield service
        service.stop()


def submit(service, **more):
    model = service.client.create_model(DIGITS / "digits-cnn.onnx")
    body = {"model_id": model.id, "pipeline": PIPELINE, "benchmark": BRIEF, **more}
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    answer = httpx.post(f"{service.client.base_url}/v1/jobs", json=body, headers=headers, trust_env=False)
    return answer.raise_for_status().json()["id"]


def test_one_trace_from_the_request_to_the_steps_and_the_webhook(traced, collector):
    with Receiver() as receiver:
        webhook = {"url": receiver.url, "secret": new_secret(), "events": ["job.succeeded"]}
        job_id = submit(traced, webhook=webhook)
        assert traced.client.wait(job_id, timeout=60).state == "succeeded"

        request = collector.one("POST /v1/jobs")
        assert request.parent_span_id.hex() == CALLER
        attempt, wait = collector.one("attempt compress"), collector.one("wait cpu")
        assert attempt.parent_span_id == wait.parent_span_id == request.span_id
        about = attributes(attempt)
        assert (about["levity.job_id"], about["levity.attempt"], about["levity.queue"]) == (job_id, 1, "cpu")
        below = [collector.one(name) for name in ("prepare", "child", "publish")]
        assert {span.parent_span_id for span in below} == {attempt.span_id}
        child = below[1]
        inside = [
            collector.one(name) for name in ("load", "step prune", "step quantize", "verify", "measure", "report")
        ]
        assert {span.parent_span_id for span in inside} == {child.span_id}
        # In this order, one after another, within the child's span and that within the attempt's.
        times = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in inside]
        assert times == sorted(times)
        assert all(start < end for start, end in times)
        assert child.start_time_unix_nano <= times[0][0]
        assert times[-1][1] <= child.end_time_unix_nano <= attempt.end_time_unix_nano
        assert [attributes(span).get("levity.index") for span in inside[1:3]] == [0, 1]
        delivery = collector.one("deliver webhook")
        assert attributes(delivery)["levity.http_status"] == 204
        assert delivery.parent_span_id == request.span_id
    services = {service for service, span in collector.spans if span.trace_id.hex() == TRACE}
    assert services == {"levity-api", "levity-worker"}
    # Lines of the log are found by the trace.
    for name, log in (("api", "api.jobs.service"), ("worker-cpu", "workers.supervisor")):
        (path,) = traced.folder.glob(f"*-{name}.log")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert {line["trace_id"] for line in lines if line.get("job_id") == job_id and line["logger"] == log} == {TRACE}
    everything = "".join(str(span) for _, span in collector.spans)
    assert "whsec_" not in everything
    assert "/readyz" not in everything


def test_what_fails_is_marked(traced, collector):
    collector.spans.clear()
    model = traced.client.create_model(DIGITS / "digits-cnn.onnx")
    job = traced.client.submit(model.id, [{"type": "prune", "amount": 0.5, "exclude": ["nothing-like-it"]}])
    job = traced.client.wait(job.id, timeout=60)
    assert job.state == "failed"

    def failed():
        found = {span.name: span for _, span in collector.spans if span.status.code == 2}
        return found if {"step prune", "child", "attempt compress"} <= set(found) else None

    spans = eventually(failed, what="the failed spans")
    code = job.error["code"] if isinstance(job.error, dict) else job.error.code
    assert {attributes(span)["error.type"] for span in spans.values()} == {code}
    assert len({span.trace_id for span in spans.values()}) == 1
