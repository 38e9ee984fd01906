"""Input that cannot be used: a code and a sentence for its owner, and the service goes on."""

from __future__ import annotations

import http.client
import io
import json
import zipfile

import httpx
import numpy as np
import pytest

from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, JobState, Queue
from levity import LevityError
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, LONG, PRUNE
from tests.compression.models import make_model, save, value

STATIC = {"type": "quantize", "mode": "static"}


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def pictures(count=12, *, dtype=np.float32, shape=(1, 8, 8)):
    return np.random.default_rng(0).random((count, *shape)).astype(dtype)


def unfinished(path):
    content = (DIGITS / "digits-cnn.onnx").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def with_bytes(path, content):
    path.write_bytes(content)
    return path


def outside_operators(path):
    from onnx import helper

    nodes = [helper.make_node("Launch", ["x"], ["y"], "launch", domain="com.evil")]
    model = make_model(
        nodes, [value("x", ["n", 2])], [value("y", ["n", 2])], {"w": np.ones(2, np.float32)}, domains=["com.evil"]
    )
    return save(model, path)


def pickled(path):
    np.savez(path, image=np.array([{"a": 1}, None], dtype=object), labels=np.zeros(2, np.int64))
    return path


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 1, 8, 8)}
        )
        archive.writestr("image.npy", header.getvalue() + bytes(256_000_000))
    return path


BAD_MODELS = {
    "a picture": ("not_onnx", lambda path: with_bytes(path, b"GIF89a" + bytes(500))),
    "nothing": ("not_onnx", lambda path: with_bytes(path, b"")),
    "half a model": ("truncated_model", unfinished),
    "foreign operators": ("operator_domain_not_allowed", outside_operators),
}
BAD_DATASETS = {
    "text": ("not_a_dataset", lambda path: with_bytes(path, b"5.1,3.5,1.4,0.2,setosa\n")),
    "pickled objects": ("dtype_not_supported", pickled),
    "no samples": ("empty_dataset", lambda path: npz(path, image=pictures(0), labels=np.zeros(0, np.int64))),
    "nan": ("non_finite_values", lambda path: npz(path, image=pictures() * np.float32("nan"))),
    "lengths differ": ("lengths_differ", lambda path: npz(path, image=pictures(12), labels=np.zeros(11, np.int64))),
    "negative labels": ("labels_invalid", lambda path: npz(path, image=pictures(3), labels=np.array([0, -1, 2]))),
    "fractional labels": ("labels_invalid", lambda path: npz(path, image=pictures(2), labels=np.array([0.5, 1.0]))),
    "zip bomb": ("archive_unsafe", zip_bomb),
}


@pytest.fixture
def same_workers(service):
    """The workers that were there before the test still run after it."""
    before = list(service.workers)
    yield
    assert all(worker.alive for worker in before)


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_model(service, same_workers, tmp_path, kind):
    code, make = BAD_MODELS[kind]
    with pytest.raises(LevityError) as error:
        service.client.create_model(make(tmp_path / "model.onnx"))
    assert error.value.code == code
    assert error.value.message.endswith(".")


@pytest.mark.parametrize("kind", BAD_DATASETS)
def test_bad_dataset(service, same_workers, tmp_path, kind):
    code, make = BAD_DATASETS[kind]
    with pytest.raises(LevityError) as error:
        service.client.create_dataset(make(tmp_path / "data.npz"))
    assert error.value.code == code


def test_rejected_model_cannot_be_used(service, same_workers, tmp_path):
    with pytest.raises(LevityError):
        service.client.create_model(with_bytes(tmp_path / "m.onnx", b"GIF89a"), name="rejected-one")
    rejected = next(model for model in service.client.models() if model.name == "rejected-one")
    with pytest.raises(LevityError) as error:
        service.client.submit(rejected.id, PRUNE)
    assert (error.value.status, error.value.code) == (409, "model_rejected")


@pytest.mark.parametrize(
    ("pipeline", "pointer"),
    [
        ([{"type": "shrink"}], "/pipeline/0"),
        ([{"type": "prune", "amount": 1.5}], "/pipeline/0"),
        ([{"type": "prune", "amonut": 0.5}], "/pipeline/0"),
        ([{"type": "quantize", "mode": "float16"}, {"type": "prune", "amount": 0.5}], "/pipeline"),
        ([], "/pipeline"),
    ],
    ids=["unknown step", "out of bounds", "misspelt", "illegal order", "no step"],
)
def test_bad_pipeline_never_reaches_a_queue(service, inputs, pipeline, pointer):
    with pytest.raises(LevityError) as error:
        inputs.submit(pipeline)
    assert error.value.status == 422
    assert any(entry["pointer"].startswith(pointer) for entry in error.value.problem["errors"])


def test_static_without_calibration(service, inputs):
    with pytest.raises(LevityError) as error:
        inputs.submit([STATIC])
    assert (error.value.status, error.value.code) == (422, "calibration_data_missing")


@pytest.mark.parametrize(
    "arrays",
    [{"image": pictures(shape=(1, 9, 8))}, {"image": pictures(shape=(8, 8))}, {"image": pictures(dtype=np.float64)}],
    ids=["shape", "rank", "dtype"],
)
def test_data_that_does_not_fit_the_model(service, inputs, tmp_path, arrays):
    dataset = service.client.create_dataset(npz(tmp_path / "data.npz", **arrays))
    with pytest.raises(LevityError) as error:
        inputs.submit([STATIC], data={"calibration": dataset})
    assert (error.value.status, error.value.code) == (422, "dataset_mismatch")
    assert "image" in error.value.message


def test_labels_beyond_the_classes(service, inputs, same_workers, tmp_path):
    """The model tells ten classes apart; label 10 is none of them."""
    data = npz(tmp_path / "data.npz", image=pictures(11), labels=np.arange(11))
    dataset = service.client.create_dataset(data)
    with pytest.raises(LevityError) as error:
        inputs.submit(data={"evaluation": dataset})
    assert (error.value.status, error.value.code) == (422, "labels_out_of_range")


def test_unknown_things(service, inputs):
    nothing = "0" * 32
    for call, code in (
        (lambda: service.client.submit(f"mdl_{nothing}", PRUNE), "model_not_found"),
        (lambda: inputs.submit([STATIC], data={"calibration": f"dts_{nothing}"}), "dataset_not_found"),
        (lambda: service.client.get_job(f"job_{nothing}"), "job_not_found"),
        (lambda: service.client.create_model(upload(f"upl_{nothing}")), "upload_not_found"),
    ):
        with pytest.raises(LevityError) as error:
            call()
        assert (error.value.status, error.value.code) == (404, code)


def upload(upload_id):
    from levity import Upload

    return Upload.from_json({"id": upload_id, "state": "complete", "part_size": 1})


def test_artifact_of_another_job_is_out_of_reach(service, inputs):
    jobs = [service.client.wait(inputs.submit().id, timeout=30) for _ in range(2)]
    inside = f"/v1/jobs/{jobs[0].id}/artifacts"
    for name in (f"../../{jobs[1].id}/artifacts/model.onnx", f"..%2f..%2f{jobs[1].id}%2fartifacts%2fmodel.onnx"):
        # Clients with manners resolve the dots themselves; this one sends them as they are.
        connection = http.client.HTTPConnection("127.0.0.1", service.port)
        connection.request("GET", f"{inside}/{name}")
        response = connection.getresponse()
        problem = json.loads(response.read())
        connection.close()
        assert response.status == 404, name
        assert problem["code"].endswith("not_found")


def test_same_key_for_another_job(service, inputs):
    first = inputs.submit(idempotency_key="one-key", name="a")
    with pytest.raises(LevityError) as error:
        inputs.submit(idempotency_key="one-key", name="b")
    assert (error.value.status, error.value.code) == (422, "idempotency_key_reused")
    service.assert_settled(service.client.wait(first.id, timeout=30), "succeeded")


def test_uploads_that_are_not_what_they_claim(service, inputs, tmp_path):
    with httpx.Client(base_url=service.client.base_url, trust_env=False) as client:
        created = client.post("/v1/uploads", json={"sha256": "0" * 64}).json()
        wrong = client.put(f"/v1/uploads/{created['id']}/content", content=b"bytes")
        assert (wrong.status_code, wrong.json()["code"]) == (422, "digest_mismatch")
        assert client.get(f"/v1/uploads/{created['id']}").json()["state"] == "open"

        created = client.post("/v1/uploads", json={}).json()
        for number in (1, 3):
            assert client.put(f"/v1/uploads/{created['id']}/parts/{number}", content=b"x" * 10).status_code == 200
        gap = client.post(f"/v1/uploads/{created['id']}/complete", json={"parts": [1, 2, 3]})
        assert (gap.status_code, gap.json()["code"]) == (409, "part_missing")
        assert "2" in gap.json()["detail"]

        large = client.post("/v1/uploads", json={"size": service.settings.max_upload_bytes + 1})
        assert (large.status_code, large.json()["code"]) == (413, "upload_too_large")
        incomplete = client.post("/v1/models", json={"upload_id": created["id"]})
        assert (incomplete.status_code, incomplete.json()["code"]) == (409, "upload_incomplete")


@pytest.mark.parametrize("missing", ["model", "dataset"])
def test_deleted_while_queued(service, inputs, missing):
    """The API keeps what jobs need; an administrator's SQL does not."""
    gone = (
        {"model_id": "mdl_gone"}
        if missing == "model"
        else {"model_id": inputs.model, "datasets": {"evaluation": "dts_gone"}}
    )
    with service.database.write() as session:
        spec = {"steps": list(PRUNE), "benchmark": BRIEF, "seed": 0}
        new = NewJob(kind=JobKind.COMPRESS, queue=Queue.CPU, max_attempts=3, time_limit_seconds=60, spec=spec, **gone)
        job_id = Jobs(session).add(new).id
    row = service.assert_settled(service.client.wait(job_id, timeout=30), "failed")
    assert row.error["code"] == f"{missing}_deleted"
    assert row.attempt == 1
    inputs.assert_healthy()


def test_dataset_in_use_is_kept(service, inputs):
    job = inputs.submit(data={"evaluation": inputs.evaluation}, benchmark=LONG)
    service.wait_for(job.id, lambda row: row.state == JobState.RUNNING)
    with pytest.raises(LevityError) as error:
        service.client.delete_dataset(inputs.evaluation)
    assert (error.value.status, error.value.code) == (409, "in_use")
    service.client.cancel(job.id)
    service.assert_settled(service.client.wait(job.id, timeout=30), "cancelled")


def test_full_disk(service, inputs):
    """A worker that may not fill its disk any further gives up the job, and says why."""
    service.cpu_worker.stop()
    crowded = service.start_worker(min_free_bytes=2**60)
    job = inputs.submit(max_attempts=1)
    row = service.assert_settled(service.client.wait(job.id, timeout=30), "failed")
    assert row.error["code"] == "store_full"
    assert row.error["retryable"] is True
    assert crowded.alive
    crowded.stop()
    service.start_worker()
    assert service.client.retry(job.id).state == "queued"
    assert service.client.wait(job.id, timeout=30).state == "succeeded"
