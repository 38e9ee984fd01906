from __future__ import annotations

import threading
import time

import pytest
from pydantic import TypeAdapter

from api.datasets.schemas import Dataset
from api.models.schemas import Model
from catalog.datasets.tables import DatasetRow
from catalog.jobs.states import JobKind, Queue
from catalog.jobs.tables import JobDatasetRow, JobRow
from catalog.models.tables import ModelRow
from compression.graph.architectures.spec import Architecture
from tests.api.harness import SIGNATURE, assert_problem, data_summary

NOUNS = ("models", "datasets")
SCHEMA = {"models": Model, "datasets": Dataset}
TABLE = {"models": ModelRow, "datasets": DatasetRow}
SUMMARY = {"models": SIGNATURE.model_dump(mode="json"), "datasets": data_summary().model_dump(mode="json")}
REJECTION = {"code": "not_onnx", "message": "These bytes are no ONNX model.", "retryable": False, "log_tail": ""}


@pytest.fixture(params=NOUNS)
def noun(request):
    return request.param


def create(service, noun, *, wait=None, **fields):
    body = {"upload_id": service.upload(filename="file.bin"), **fields}
    return service.http.post(f"/v1/{noun}", json=body, headers={"prefer": wait} if wait else None)


def inspect_soon(service, write):
    """Do what the inspector does, a little later."""

    def inspect():
        claim = None
        while claim is None:
            time.sleep(0.02)
            jobs = service.rows(JobRow, state="queued", queue="io")
            claim = service.claim(jobs[0].id, queue=Queue.IO) if jobs else None
        service.leases(lambda leases: write(leases, claim))

    thread = threading.Thread(target=inspect)
    thread.start()
    return thread


def test_registering_queues_an_inspection(service, noun):
    response = create(service, noun)
    assert response.status_code == 202
    body = response.json()
    SCHEMA[noun].model_validate(body)
    assert response.headers["location"] == f"/v1/{noun}/{body['id']}"
    assert (body["name"], body["state"], body["size"], body["summary"]) == ("file.bin", "inspecting", 10, None)
    (job,) = service.rows(JobRow, state="queued")
    kind = JobKind.INSPECT_MODEL if noun == "models" else JobKind.INSPECT_DATASET
    assert (job.kind, job.queue) == (kind, "io")
    assert job.time_limit_seconds == service.settings.inspection_time_limit_seconds
    assert job.request_id == response.headers["x-request-id"]
    if noun == "models":
        assert job.model_id == body["id"]
        assert body["files"] == [{"name": "model.onnx", "sha256": body["sha256"], "size": 10}]
    else:
        (data,) = service.rows(JobDatasetRow, job_id=job.id)
        assert (data.role, data.dataset_id) == ("subject", body["id"])
    # Inspections are the service's own affair.
    assert job.id not in {item["id"] for item in service.http.get("/v1/jobs?limit=200").json()["items"]}
    for path in ("", "/events", "/artifacts", "/attempts", "/artifacts/x"):
        assert_problem(service.http.get(f"/v1/jobs/{job.id}{path}"), 404, "job_not_found")
    assert_problem(service.http.post(f"/v1/jobs/{job.id}/cancel"), 404, "job_not_found")
    assert_problem(service.http.delete(f"/v1/jobs/{job.id}"), 404, "job_not_found")


def test_a_worker_is_woken_after_the_commit(service, noun):
    queue = service.settings.root / "broker" / "queue"
    before = {path.name for path in queue.iterdir()}
    create(service, noun)
    new = [path for path in queue.iterdir() if path.name not in before]
    assert len(new) == 1
    assert new[0].name.endswith(".io.msg")


def test_waiting_until_ready(service, noun):
    thread = inspect_soon(service, lambda leases, claim: leases.publish_inspection(claim, summary=SUMMARY[noun]))
    response = create(service, noun, wait="respond-async, wait=20")
    thread.join()
    assert response.status_code == 201
    assert response.headers["preference-applied"] == "wait=20"
    assert response.json()["state"] == "ready"
    assert response.json()["summary"] == SUMMARY[noun]
    SCHEMA[noun].model_validate(response.json())
    assert service.http.get(response.headers["location"]).json() == response.json()


def test_waiting_until_rejected(service, noun):
    thread = inspect_soon(service, lambda leases, claim: leases.fail(claim, REJECTION, retry=False))
    response = create(service, noun, wait="wait=20", name="rejected")
    thread.join()
    problem = assert_problem(response, 422, "not_onnx")
    assert problem["detail"] == REJECTION["message"]
    body = service.http.get(response.headers["location"]).json()
    assert (body["state"], body["error"]) == ("rejected", {k: REJECTION[k] for k in ("code", "message")})


def test_waiting_in_vain(service, noun):
    start = time.monotonic()
    response = create(service, noun, wait="wait=1")
    assert 0.9 < time.monotonic() - start < 20
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=1")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("prefer", ["wait", "wait=x", "wait=-1", "wait=0", "swait=9", "respond-async"])
def test_preferences_that_ask_for_nothing(service, noun, prefer):
    start = time.monotonic()
    response = create(service, noun, wait=prefer)
    assert time.monotonic() - start < 20
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


def test_uploads_that_are_not_there(service, noun):
    open_upload = service.http.post("/v1/uploads", json={}).json()["id"]
    post = service.http.post
    assert_problem(post(f"/v1/{noun}", json={"upload_id": open_upload}), 409, "upload_incomplete")
    assert_problem(post(f"/v1/{noun}", json={"upload_id": "upl_nothing"}), 404, "upload_not_found")
    assert service.rows(JobRow, state="queued") == []


def test_lists_are_paged_newest_first(service, noun):
    ids = [create(service, noun, name=f"n{number}").json()["id"] for number in range(5)]
    page = service.http.get(f"/v1/{noun}", params={"limit": 2}).json()
    seen = [item["id"] for item in page["items"]]
    while page["next_cursor"] and len(seen) < 5:
        page = service.http.get(f"/v1/{noun}", params={"limit": 2, "cursor": page["next_cursor"]}).json()
        assert len(page["items"]) <= 2
        seen += [item["id"] for item in page["items"]]
    assert seen[:5] == ids[::-1]


def test_a_page_that_is_exactly_full_is_the_last(service, noun):
    total = len(service.http.get(f"/v1/{noun}?limit=200").json()["items"])
    if total == 0:
        create(service, noun)
        total = 1
    page = service.http.get(f"/v1/{noun}", params={"limit": total}).json()
    assert (len(page["items"]), page["next_cursor"]) == (total, None)


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "limit=99999999999999999999"])
def test_bad_limits(http, noun, query):
    assert_problem(http.get(f"/v1/{noun}?{query}"), 422, "invalid_request", "/query/limit")


@pytest.mark.parametrize("cursor", ["!", "a", "%00", "%FF", "AAAA%2F"])
def test_cursors_that_no_page_gave_are_no_server_errors(http, noun, cursor):
    response = http.get(f"/v1/{noun}?cursor={cursor}")
    assert response.status_code in (200, 422)
    if response.status_code == 422:
        assert_problem(response, 422, "invalid_request", "/query/cursor")


def test_unknown_query_parameters_are_ignored(http, noun):
    assert http.get(f"/v1/{noun}?colour=red").status_code == 200


def test_deleting(service, noun):
    location = create(service, noun).headers["location"]
    assert service.http.delete(location).status_code == 204
    code = f"{noun[:-1]}_not_found"
    assert_problem(service.http.get(location), 404, code)
    assert_problem(service.http.delete(location), 404, code)


def test_what_unfinished_jobs_need_stays(service, noun):
    model, dataset = service.model(), service.dataset()
    job = service.job(model_id=model, data={"evaluation": dataset})
    path = f"/v1/{noun}/{model if noun == 'models' else dataset}"
    assert job in assert_problem(service.http.delete(path), 409, "in_use")["detail"]
    service.http.post(f"/v1/jobs/{job}/cancel")
    assert service.http.delete(path).status_code == 204
    assert service.get(job)["state"] == "cancelled"


@pytest.mark.parametrize("subject", ["x", "%00", "..", "x" * 500])
def test_unknown_ids(http, noun, subject):
    response = http.get(f"/v1/{noun}/{subject}")
    assert response.status_code == 404
    assert response.json()["code"] in (f"{noun[:-1]}_not_found", "not_found")


def test_external_data(service):
    weights = service.upload(b"weights")
    response = create(service, "models", external_data=[{"name": "model.onnx.data", "upload_id": weights}])
    files = response.json()["files"]
    assert [(file["name"], file["size"]) for file in files] == [("model.onnx", 10), ("model.onnx.data", 7)]
    assert response.json()["size"] == 17


@pytest.mark.parametrize(
    ("names", "pointer"),
    [
        (["../x"], "/external_data/0/name"),
        (["a/b"], "/external_data/0/name"),
        ([".hidden"], "/external_data/0/name"),
        ([""], "/external_data/0/name"),
        (["a", "a"], ""),
        (["model.onnx"], ""),
    ],
)
def test_names_of_external_data_are_plain_and_differ(service, names, pointer):
    upload = service.upload()
    response = create(service, "models", external_data=[{"name": name, "upload_id": upload} for name in names])
    assert_problem(response, 422, "invalid_request", pointer)


def test_image_preprocessing_is_kept(service):
    images = {"height": 8, "width": 8, "channels": "grey", "mean": [0.5], "std": [0.25]}
    body = create(service, "datasets", images=images).json()
    assert {key: body["images"][key] for key in images} == images
    assert body["images"]["layout"] == "nchw"


@pytest.mark.parametrize(
    ("images", "pointer"),
    [
        ({"height": 8}, "/images/width"),
        ({"height": 8, "width": 0}, "/images/width"),
        ({"height": 8, "width": 8, "std": [0]}, "/images"),
        ({"height": 8, "width": 8, "depth": 3}, "/images/depth"),
    ],
)
def test_image_preprocessing_that_makes_no_sense(service, images, pointer):
    assert_problem(create(service, "datasets", images=images), 422, "invalid_request", pointer)


LAYERS = {"layers": [{"type": "linear", "in_features": 4, "out_features": 2}]}
RESNET = {"name": "torchvision:resnet18", "arguments": {"num_classes": 10}}


@pytest.mark.parametrize("architecture", [LAYERS, RESNET], ids=["layers", "torchvision"])
def test_weights_with_an_architecture(service, architecture):
    body = create(service, "models", architecture=architecture, input={"shape": [4]}).json()
    Model.model_validate(body)
    (file,) = body["files"]
    assert body["source"]["file"] == file
    assert (file["name"], file["sha256"]) == ("weights", body["sha256"])
    assert body["source"]["input"] == {"shape": [4], "dtype": "float32", "name": None}
    assert TypeAdapter(Architecture).validate_python(architecture) == TypeAdapter(Architecture).validate_python(
        body["source"]["architecture"]
    )
    # No job can run before there is a graph.
    assert_problem(service.submit(body["id"]), 409, "model_not_ready")
    made = [{"name": "model.onnx", "sha256": "a" * 64, "size": 5}, {"name": "b", "sha256": "b" * 64, "size": 2}]
    (job,) = service.rows(JobRow, state="queued", queue="io")
    claim = service.claim(job.id, queue=Queue.IO)
    service.leases(lambda leases: leases.publish_inspection(claim, summary=SUMMARY["models"], files=made))
    ready = service.http.get(f"/v1/models/{body['id']}").json()
    assert (ready["state"], ready["files"], ready["size"]) == ("ready", made, 7)
    assert ready["sha256"] not in ("a" * 64, body["sha256"])
    assert ready["source"] == body["source"]
    Model.model_validate(ready)
    assert service.submit(body["id"]).status_code == 202


def test_an_onnx_model_has_no_source(service):
    assert create(service, "models").json()["source"] is None


@pytest.mark.parametrize(
    ("fields", "pointers"),
    [
        ({"architecture": {"name": "resnet18"}}, ["/architecture"]),
        ({"architecture": {}}, ["/architecture"]),
        ({"architecture": {"layers": [{"type": "lambda"}]}}, ["/architecture/layers/0"]),
        ({"architecture": {"layers": [{"type": "relu"}, {"type": "linear", "in_features": 3}]}},
         ["/architecture/layers/1/out_features"]),
        ({"architecture": RESNET | {"arguments": {"weights": "DEFAULT"}}}, ["/architecture/arguments"]),
        ({"architecture": RESNET | {"arguments": {"num_classes": [10]}}}, ["/architecture/arguments"]),
        ({"architecture": RESNET, "input": {"shape": [3, 0]}}, ["/input/shape/1", "/input/shape/1"]),
        ({"architecture": RESNET, "input": []}, [""]),
        ({"input": {"shape": [3]}}, [""]),
        ({"architecture": RESNET, "external_data": [{"name": "x", "upload_id": "upl_x"}]}, [""]),
        ({"external_data": [{"name": "state_dict.safetensors", "upload_id": "upl_x"}]}, [""]),
    ],
)  # fmt: skip
def test_architectures_that_make_no_sense(service, fields, pointers):
    assert_problem(create(service, "models", **fields), 422, "invalid_request", *pointers)
