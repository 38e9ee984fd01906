from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api.jobs.schemas import AttemptList, Job
from catalog.datasets.tables import DatasetRow
from catalog.jobs.states import Queue
from catalog.jobs.tables import IdempotencyRow, JobRow
from catalog.models.tables import ModelRow
from catalog.workers.repository import Workers
from compression.spec import PipelineSpec
from tests.api.harness import ERROR, PRUNE, STATIC, assert_problem, data_summary

RESULT = {
    "metrics": [
        {
            "name": "file_bytes",
            "unit": "bytes",
            "direction": "lower_is_better",
            "original": 4000.0,
            "result": 1000.0,
            "ratio": 4.0,
            "interval": None,
            "samples": None,
            "verdict": "4.00x smaller",
        }
    ],
    "measured": {"conditions": None},
    "steps": [{"index": 0, "type": "prune", "seconds": 0.5, "cached": False, "details": {"sparsity": 0.5}}],
    "notes": ["accuracy not measured"],
    "seconds": 1.5,
}


def test_submitting(service):
    model, dataset = service.model(), service.dataset()
    response = service.submit(
        model,
        pipeline=[PRUNE, STATIC],
        data={"calibration": dataset},
        name="first",
        labels={"team": "vision"},
        priority=3,
        seed=7,
        max_attempts=2,
        time_limit_seconds=60,
        start_within_seconds=600,
    )
    assert response.status_code == 202
    job = response.json()
    Job.model_validate(job)
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert response.headers["retry-after"] == "1"
    spec = PipelineSpec.model_validate({"steps": [PRUNE, STATIC], "seed": 7}).model_dump(mode="json")
    assert (job["pipeline"], job["benchmark"], job["seed"]) == (spec["steps"], spec["benchmark"], 7)
    assert (job["state"], job["queue"], job["priority"], job["attempt"]) == ("queued", "cpu", 3, 0)
    assert (job["data"], job["labels"], job["name"]) == ({"calibration": dataset}, {"team": "vision"}, "first")
    assert (job["max_attempts"], job["time_limit_seconds"]) == (2, 60)
    assert (job["metrics"], job["measured"], job["steps"], job["notes"]) == (None, None, None, None)
    assert job["artifacts"] == []
    (row,) = service.rows(JobRow, id=job["id"])
    assert row.spec == spec
    assert row.expires_at - row.created_at == pytest.approx(600)
    assert row.request_id == response.headers["x-request-id"]
    shown = service.http.get(response.headers["location"])
    assert shown.json() == job
    assert shown.headers["retry-after"] == "1"


def test_defaults_come_from_the_settings(service):
    job = service.submit().json()
    assert job["max_attempts"] == service.settings.max_attempts
    assert job["time_limit_seconds"] == service.settings.job_time_limit_seconds


@pytest.mark.parametrize("queue", ["cpu", "gpu"])
def test_a_worker_of_the_queue_is_woken_after_the_commit(service, queue):
    model = service.model()
    folder = service.settings.root / "broker" / "queue"
    before = {path.name for path in folder.iterdir()}
    service.submit(model, queue=queue).raise_for_status()
    new = [path.name for path in folder.iterdir() if path.name not in before]
    assert [name.endswith(f".{queue}.msg") for name in new] == [True]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"pipeline": [{"type": "shrink"}]}, "/pipeline/0"),
        ({"pipeline": [PRUNE, {"type": "prune", "amount": 1.5}]}, "/pipeline/1/amount"),
        ({"pipeline": [{"type": "prune", "amonut": 0.5, "amount": 0.5}]}, "/pipeline/0/amonut"),
        ({"pipeline": [{"type": "prune", "prune": 1, "amount": 0.5}]}, "/pipeline/0/prune"),
        ({"pipeline": [{"type": "prune"}]}, "/pipeline/0"),
        ({"pipeline": [{"type": "quantize", "mode": "static", "weight_bits": 3}]}, "/pipeline/0/weight_bits"),
        ({"pipeline": [{"type": "quantize"}]}, "/pipeline/0"),
        ({"pipeline": [{"type": "quantize", "mode": "float16"}, PRUNE]}, "/pipeline"),
        ({"pipeline": []}, "/pipeline"),
        ({"pipeline": [PRUNE] * 33}, "/pipeline"),
        ({"pipeline": "prune"}, "/pipeline"),
        ({"priority": 10}, "/priority"),
        ({"queue": "io"}, "/queue"),
        ({"seed": 2**32}, "/seed"),
        ({"seed": -1}, "/seed"),
        ({"labels": {"team": 1}}, "/labels/team"),
        ({"labels": {"": "x"}}, "/labels/"),
        ({"labels": {"a/b~c": "x" * 256}}, "/labels/a~1b~0c"),
        ({"labels": {str(number): "" for number in range(65)}}, "/labels"),
        ({"name": "x" * 256}, "/name"),
        ({"max_attempts": 0}, "/max_attempts"),
        ({"time_limit_seconds": 0}, "/time_limit_seconds"),
        ({"time_limit_seconds": 10**7}, "/time_limit_seconds"),
        ({"start_within_seconds": -1}, "/start_within_seconds"),
        ({"benchmark": {"max_rounds": 1}}, "/benchmark/max_rounds"),
        ({"benchmark": {"min_rounds": 100, "max_rounds": 10}}, "/benchmark"),
        ({"data": {"validation": "dts_x"}}, "/data/validation"),
        ({"colour": "red"}, "/colour"),
        ({"model_id": 5}, "/model_id"),
    ],
)
def test_specs_that_cannot_work_never_reach_a_queue(service, fields, pointer):
    body = {"model_id": service.model(), "pipeline": [PRUNE], **fields}
    assert_problem(service.http.post("/v1/jobs", json=body), 422, "invalid_request", pointer)
    assert [row for row in service.rows(JobRow, state="queued") if row.kind == "compress"] == []


def test_a_provider_that_no_worker_of_the_queue_has(service):
    model = service.model()
    asked = {"benchmark": {"provider": "cuda"}}
    # Before any worker is there, nobody knows.
    assert service.submit(model, **asked).status_code == 202
    with service.database.write() as session:
        workers = Workers(session)
        workers.register("wrk_1", host="a", queue=Queue.CPU, concurrency=1, capabilities={"providers": ["cpu"]})
        workers.register("wrk_2", host="b", queue=Queue.GPU, concurrency=1, capabilities={"providers": ["cpu", "cuda"]})
    problem = assert_problem(service.submit(model, **asked), 422, "provider_missing", "/benchmark/provider")
    assert problem["detail"].endswith("cannot use the provider 'cuda' here; there are: cpu.")
    assert service.submit(model, queue="gpu", **asked).status_code == 202
    assert service.submit(model, benchmark={"provider": "cpu"}).status_code == 202
    with service.database.write() as session:
        Workers(session).forget_silent(seconds=-10)


def test_every_mistake_is_named(http):
    problem = http.post("/v1/jobs", json={"pipeline": [{"type": "prune", "amount": 2}], "priority": -1})
    assert_problem(problem, 422, "invalid_request", "/model_id", "/pipeline/0/amount", "/priority")


def test_things_that_do_not_exist(service):
    assert_problem(service.submit("mdl_nothing"), 404, "model_not_found")
    response = service.submit(pipeline=[STATIC], data={"calibration": "dts_nothing"})
    assert_problem(response, 404, "dataset_not_found")


def test_things_that_were_rejected(service):
    model, dataset = service.model(), service.dataset()
    service.change(DatasetRow, dataset, state="rejected", error={"code": "x", "message": "It is empty."})
    problem = assert_problem(service.submit(model, data={"evaluation": dataset}), 409, "dataset_rejected")
    assert "It is empty." in problem["detail"]
    service.change(ModelRow, model, state="rejected", error={"code": "x", "message": "No graph."})
    assert_problem(service.submit(model), 409, "model_rejected")


def test_static_quantization_needs_calibration_data(service):
    response = service.submit(pipeline=[STATIC], data={"evaluation": service.dataset()})
    assert_problem(response, 422, "calibration_data_missing", "/data/calibration")


def test_a_student_is_named_when_a_step_needs_one_and_only_then(service):
    data = {"training": service.dataset()}
    distill = [{"type": "distill", "student": {"kind": "model"}}]
    assert_problem(service.submit(pipeline=distill, data=data), 422, "student_missing", "/student_id")
    assert_problem(service.submit(student_id="mdl_x"), 422, "student_not_used", "/student_id")
    response = service.submit(pipeline=distill, data=data, student_id="mdl_x")
    assert_problem(response, 404, "model_not_found")


@pytest.mark.parametrize(
    "step",
    [
        PRUNE | {"training": {}},
        {"type": "cluster", "training": {"epochs": 1}},
        {"type": "finetune"},
    ],
    ids=["prune", "cluster", "finetune"],
)
def test_steps_that_train_need_training_data(service, step):
    dataset = service.dataset()
    response = service.submit(pipeline=[PRUNE, step], data={"calibration": dataset, "evaluation": dataset})
    problem = assert_problem(response, 422, "training_data_missing", "/data/training")
    assert f"'{step['type']}' step learns from samples" in problem["detail"]
    assert service.submit(pipeline=[PRUNE, step], data={"training": dataset}).status_code == 202


@pytest.mark.parametrize(
    ("summary", "code"),
    [
        (data_summary(shape=(16, 1, 9, 8)), "dataset_mismatch"),
        (data_summary(shape=(16, 8, 8)), "dataset_mismatch"),
        (data_summary(dtype="float64"), "dataset_mismatch"),
        (data_summary(classes=11), "labels_out_of_range"),
    ],
    ids=["shape", "rank", "dtype", "labels"],
)
@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_data_that_does_not_fit_the_model(service, summary, code, role):
    response = service.submit(data={role: service.dataset(summary)})
    assert_problem(response, 422, code, f"/data/{role}")


@pytest.mark.parametrize("classes", [10, None])
def test_data_that_fits_the_model(service, classes):
    assert service.submit(data={"evaluation": service.dataset(data_summary(classes=classes))}).status_code == 202


def test_what_is_not_inspected_yet_is_left_to_the_worker(service):
    response = service.submit(
        service.model(summary=None), data={"evaluation": service.dataset(data_summary(classes=99))}
    )
    assert response.status_code == 202


# Idempotency


def test_the_same_key_and_body_give_the_same_job(service):
    model = service.model()
    headers = {"idempotency-key": f"key of {model}"}
    first = service.submit(model, headers=headers)
    assert "idempotency-replayed" not in first.headers
    # A default that is written out is the same body.
    again = service.submit(model, headers=headers, priority=0)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.headers["location"] == first.headers["location"]
    assert again.json() == first.json()
    assert len(service.rows(JobRow, model_id=model, kind="compress")) == 1


def test_the_same_key_and_another_body_are_refused(service):
    model = service.model()
    headers = {"idempotency-key": f"key of {model}"}
    service.submit(model, headers=headers)
    assert_problem(service.submit(model, headers=headers, name="other"), 422, "idempotency_key_reused")
    assert len(service.rows(JobRow, model_id=model, kind="compress")) == 1


def test_a_key_is_replayed_when_its_model_is_gone(service):
    model = service.model()
    headers = {"idempotency-key": f"key of {model}"}
    job = service.submit(model, headers=headers).json()["id"]
    service.http.post(f"/v1/jobs/{job}/cancel")
    service.http.delete(f"/v1/models/{model}").raise_for_status()
    assert service.submit(model, headers=headers).json()["id"] == job
    service.http.delete(f"/v1/jobs/{job}").raise_for_status()
    assert_problem(service.submit(model, headers=headers), 404, "model_not_found")


def test_parallel_submissions_with_one_key_give_one_job(service):
    model = service.model()
    barrier = threading.Barrier(20)

    def submit(_):
        with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as http:
            barrier.wait()
            return http.post(
                "/v1/jobs",
                json={"model_id": model, "pipeline": [PRUNE]},
                headers={"idempotency-key": f"key of {model}"},
            )

    with ThreadPoolExecutor(20) as threads:
        responses = list(threads.map(submit, range(20)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["id"] for response in responses}) == 1
    assert sum("idempotency-replayed" in response.headers for response in responses) == 19
    (row,) = service.rows(JobRow, model_id=model, kind="compress")
    assert [binding.job_id for binding in service.rows(IdempotencyRow, key=f"key of {model}")] == [row.id]


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_keys_have_bounds(service, key):
    response = service.submit(headers={"idempotency-key": key})
    assert_problem(response, 422, "invalid_request", "/header/idempotency-key")


# Reading


def test_a_job_that_succeeded(service):
    job_id = service.job()
    service.publish(job_id, RESULT, {"model.onnx": (b"bytes", "application/octet-stream")})
    response = service.http.get(f"/v1/jobs/{job_id}")
    assert "retry-after" not in response.headers
    job = response.json()
    Job.model_validate(job)
    assert (job["state"], job["progress"], job["attempt"], job["error"]) == ("succeeded", 1.0, 1, None)
    assert all(job[field] == RESULT[field] for field in ("metrics", "measured", "steps", "notes"))
    (artifact,) = job["artifacts"]
    assert (artifact["name"], artifact["size"]) == ("model.onnx", 5)
    assert service.http.get(artifact["url"]).content == b"bytes"
    for link in job["links"].values():
        assert service.http.get(link).status_code == 200
    listed = {item["id"]: item for item in service.http.get("/v1/jobs").json()["items"]}
    assert listed[job_id] == job
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_numbers_that_json_does_not_know_are_null(service):
    """SQLite keeps NaN in JSON; the API must not fail over it."""
    if service.database.url.startswith("postgresql"):
        pytest.skip("PostgreSQL refuses NaN in JSON")
    job_id = service.job()
    service.publish(job_id, {**RESULT, "steps": [{"details": {"sqnr": float("inf")}}]})
    assert service.get(job_id)["steps"] == [{"details": {"sqnr": None}}]


def test_a_job_that_failed(service):
    job_id = service.job()
    service.fail(job_id)
    job = service.get(job_id)
    Job.model_validate(job)
    assert (job["state"], job["error"]) == ("failed", {**ERROR, "attempt": 1})
    attempts = service.http.get(f"/v1/jobs/{job_id}/attempts").json()
    AttemptList.model_validate(attempts)
    (attempt,) = attempts["items"]
    assert (attempt["number"], attempt["outcome"], attempt["owner"]) == (1, "failed", "worker")


def test_lists_can_be_filtered_and_paged(service):
    model, other = service.model(), service.model()
    jobs = [service.job(model_id=model) for _ in range(3)]
    service.job(model_id=other)
    service.http.post(f"/v1/jobs/{jobs[0]}/cancel")

    def ids(**query):
        return [item["id"] for item in service.http.get("/v1/jobs", params=query).json()["items"]]

    assert ids(model_id=model) == jobs[::-1]
    assert ids(model_id=model, state="cancelled") == jobs[:1]
    assert ids(model_id=model, state="running") == []
    assert ids(model_id="%00\0") == []
    page = service.http.get("/v1/jobs", params={"model_id": model, "limit": 2}).json()
    assert [item["id"] for item in page["items"]] == jobs[:0:-1]
    rest = service.http.get("/v1/jobs", params={"model_id": model, "limit": 2, "cursor": page["next_cursor"]}).json()
    assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == ([jobs[0]], None)
    assert_problem(service.http.get("/v1/jobs?state=asleep"), 422, "invalid_request", "/query/state")


@pytest.mark.parametrize("path", ["", "/events", "/attempts", "/artifacts", "/artifacts/model.onnx"])
@pytest.mark.parametrize("job_id", ["job_nothing", "%00", "mdl_x", "x" * 400])
def test_unknown_jobs(http, path, job_id):
    assert_problem(http.get(f"/v1/jobs/{job_id}{path}"), 404, "job_not_found")


def test_waiting_until_a_job_has_ended(service):
    job_id = service.job()
    thread = threading.Timer(0.3, lambda: service.publish(job_id, RESULT))
    thread.start()
    start = time.monotonic()
    response = service.http.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=20"})
    thread.join()
    assert time.monotonic() - start < 10
    assert response.json()["state"] == "succeeded"
    assert response.headers["preference-applied"] == "wait=20"
    assert "retry-after" not in response.headers


def test_waiting_has_a_limit(service, monkeypatch):
    job_id = service.job()
    response = service.http.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=1"})
    assert (response.json()["state"], response.headers["retry-after"]) == ("queued", "1")
    monkeypatch.setattr("api.dependencies.MAX_WAIT_SECONDS", 1)
    response = service.http.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=999"})
    assert response.headers["preference-applied"] == "wait=1"


def test_many_that_wait_do_not_keep_others_waiting(service):
    job_id = service.job()

    def wait(_):
        with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as http:
            return http.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=3"}).status_code

    with ThreadPoolExecutor(60) as threads:
        waiting = [threads.submit(wait, number) for number in range(60)]
        time.sleep(0.5)
        start = time.monotonic()
        assert service.get(job_id)["state"] == "queued"
        assert time.monotonic() - start < 2.5
        assert {future.result() for future in waiting} == {200}


# Changing


def test_cancelling_a_queued_job(service):
    job_id = service.job()
    response = service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    again = service.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()) == (200, response.json())


def test_cancelling_a_running_job(service):
    job_id = service.job()
    claim = service.claim(job_id)
    for _ in range(2):
        response = service.http.post(f"/v1/jobs/{job_id}/cancel")
        assert response.status_code == 202
        assert (response.json()["state"], response.json()["cancel_requested"]) == ("running", True)
    service.leases(lambda leases: leases.cancelled(claim))
    assert service.get(job_id)["state"] == "cancelled"
    events = service.http.get(f"/v1/jobs/{job_id}/events").json()["items"]
    assert [event["type"] for event in events] == ["queued", "running", "cancel_requested", "cancelled"]


def test_retrying(service):
    job_id = service.job()
    assert_problem(service.http.post(f"/v1/jobs/{job_id}/retry"), 409, "job_not_retryable")
    service.fail(job_id)
    response = service.http.post(f"/v1/jobs/{job_id}/retry")
    assert response.status_code == 202
    assert (response.json()["state"], response.json()["error"], response.json()["attempt"]) == ("queued", None, 1)
    service.publish(job_id, RESULT)
    assert service.get(job_id)["attempt"] == 2
    assert_problem(service.http.post(f"/v1/jobs/{job_id}/retry"), 409, "job_not_retryable")


def test_a_job_whose_model_is_gone_cannot_be_retried(service):
    model = service.model()
    job_id = service.job(model_id=model)
    service.fail(job_id)
    service.http.delete(f"/v1/models/{model}").raise_for_status()
    assert_problem(service.http.post(f"/v1/jobs/{job_id}/retry"), 404, "model_not_found")


def test_deleting(service):
    job_id = service.job()
    assert_problem(service.http.delete(f"/v1/jobs/{job_id}"), 409, "job_not_finished")
    service.publish(job_id, RESULT, {"report.json": (b"{}", "application/json")})
    assert service.http.delete(f"/v1/jobs/{job_id}").status_code == 204
    for path in ("", "/events", "/artifacts/report.json"):
        assert_problem(service.http.get(f"/v1/jobs/{job_id}{path}"), 404, "job_not_found")
