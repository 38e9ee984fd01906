from __future__ import annotations

import base64
import hashlib
import json

import pytest

from levity import Levity, LevityError
from tests.levity.stub import Answer, problem, reply

JOB = {"id": "job_1", "state": "queued", "metrics": None, "notes": None, "artifacts": []}


def upload(state="open", part_size=1000, **more):
    return {"id": "upl_1", "state": state, "part_size": part_size, "parts": [], **more}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_get_is_tried_again_until_the_service_answers(stub, levity):
    stub.on("GET /v1/jobs/job_1", Answer(503), Answer(200, b"{}" * 50, truncate_to=10), reply(JOB))
    assert levity.get_job("job_1").state == "queued"
    assert len(stub.requests) == 3


def test_get_gives_up_after_a_while(stub, levity):
    stub.on("GET /v1/jobs/job_1", problem(503, "draining"))
    with pytest.raises(LevityError) as error:
        levity.get_job("job_1")
    assert (error.value.code, error.value.status) == ("draining", 503)
    assert len(stub.requests) == 7


def test_retry_after_is_obeyed(stub, levity, monkeypatch):
    pauses = []
    monkeypatch.setattr("levity._transport.time.sleep", pauses.append)
    stub.on("GET /v1/steps", Answer(429, headers={"retry-after": "3"}), reply({}))
    levity.steps()
    assert pauses == [3.0]


def test_registering_a_model_is_not_repeated(stub, levity, tmp_path):
    path = tmp_path / "m.onnx"
    path.touch()
    stub.on("POST /v1/uploads", reply(upload(), 201))
    stub.on("PUT /v1/uploads/upl_1/content", reply(upload("complete")))
    stub.on("POST /v1/models", Answer(503))
    with pytest.raises(LevityError):
        levity.create_model(path)
    assert len(stub.sent("POST /v1/models")) == 1


def test_retry_of_a_job_is_not_repeated(stub, levity):
    stub.on("POST /v1/jobs/job_1/retry", Answer(503), reply(JOB))
    with pytest.raises(LevityError):
        levity.retry("job_1")
    assert len(stub.requests) == 1


def test_submission_is_repeated_under_one_key(stub, levity):
    stub.on("POST /v1/jobs", Answer(503), Answer(202, b" " * 99, truncate_to=5), reply(JOB, 202))
    job = levity.submit("mdl_1", [{"type": "prune"}], data={"calibration": "dts_1"}, seed=0)
    assert job.id == "job_1"
    keys = {request.headers["idempotency-key"] for request in stub.requests}
    assert len(keys) == 1
    assert stub.requests[-1].json == {
        "model_id": "mdl_1",
        "pipeline": [{"type": "prune"}],
        "data": {"calibration": "dts_1"},
        "seed": 0,
    }


def test_two_submissions_have_two_keys(stub, levity):
    stub.on("POST /v1/jobs", reply(JOB, 202))
    for _ in range(2):
        levity.submit("mdl_1", [{"type": "prune"}])
    assert len({request.headers["idempotency-key"] for request in stub.requests}) == 2


def test_problem_becomes_an_error(stub, levity):
    pointers = [{"pointer": "/pipeline/0/amount", "message": "must be below 1", "code": "less_than"}]
    stub.on("POST /v1/jobs", problem(422, "invalid_request", errors=pointers))
    with pytest.raises(LevityError) as error:
        levity.submit("mdl_1", [{"type": "prune", "amount": 2}])
    assert error.value.code == "invalid_request"
    assert error.value.status == 422
    assert error.value.problem["errors"] == pointers
    assert str(error.value) == "It is invalid_request. (invalid_request); /pipeline/0/amount: must be below 1"


def test_answer_that_is_no_problem_document_is_an_error_all_the_same(stub, levity):
    stub.on("GET /v1/jobs/job_1", Answer(500, b"<html>", {"content-type": "text/html"}))
    with pytest.raises(LevityError) as error:
        levity.get_job("job_1")
    assert error.value.code == "http_500"


def test_nobody_listens(monkeypatch):
    monkeypatch.setattr("levity._transport._FIRST_PAUSE_SECONDS", 0.001)
    with Levity("http://127.0.0.1:9") as levity, pytest.raises(LevityError) as error:
        levity.steps()
    assert error.value.code == "unreachable"


def test_proxies_do_not_stand_before_loopback(stub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    stub.on("GET /v1/steps", reply({"steps": []}))
    with Levity(stub.url) as levity:
        assert levity.steps() == {"steps": []}


def test_jobs_come_page_by_page(stub, levity):
    stub.on(
        "GET /v1/jobs",
        reply({"items": [JOB, JOB | {"id": "job_2"}], "next_cursor": "abc"}),
        reply({"items": [JOB | {"id": "job_3"}], "next_cursor": None}),
    )
    assert [job.id for job in levity.jobs(state="queued")] == ["job_1", "job_2", "job_3"]
    assert [request.path for request in stub.requests] == ["/v1/jobs?state=queued", "/v1/jobs?state=queued&cursor=abc"]


def test_small_file_goes_in_one_request_with_its_digest(stub, levity, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x" * 700)
    stub.on("POST /v1/uploads", reply(upload(), 201))
    stub.on("PUT /v1/uploads/upl_1/content", Answer(503), reply(upload("complete", sha256=sha256(b"x" * 700))))
    seen = []
    assert levity.upload(path, on_progress=lambda *numbers: seen.append(numbers)).state == "complete"
    assert stub.requests[0].json == {"filename": "m.onnx", "size": 700}
    digest = base64.b64encode(hashlib.sha256(b"x" * 700).digest()).decode()
    for request in stub.sent("PUT /v1/uploads/upl_1/content"):
        assert request.body == b"x" * 700
        assert request.headers["content-digest"] == f"sha-256=:{digest}:"
        assert "transfer-encoding" not in request.headers
    assert seen[-1] == (700, 700)


def test_empty_file_is_sent(stub, levity, tmp_path):
    path = tmp_path / "empty"
    path.touch()
    stub.on("POST /v1/uploads", reply(upload(), 201))
    stub.on("PUT /v1/uploads/upl_1/content", reply(upload("complete")))
    assert levity.upload(path).state == "complete"


def test_large_file_goes_in_parts(stub, levity, tmp_path):
    data = bytes(range(256)) * 10
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    stub.on("POST /v1/uploads", reply(upload(), 201))
    for number in (1, 2, 3):
        stub.on(f"PUT /v1/uploads/upl_1/parts/{number}", reply({"number": number}))
    stub.on("POST /v1/uploads/upl_1/complete", Answer(503), reply(upload("complete", sha256=sha256(data))))
    seen = []
    levity.upload(path, on_progress=lambda *numbers: seen.append(numbers))
    parts = [stub.sent(f"PUT /v1/uploads/upl_1/parts/{number}")[0].body for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [1000, 1000, 560]
    assert b"".join(parts) == data
    assert stub.requests[-1].json == {"sha256": sha256(data), "parts": [1, 2, 3]}
    assert seen == [(1000, 2560), (2000, 2560), (2560, 2560)]


def test_resumed_upload_sends_only_what_is_missing_or_differs(stub, levity, tmp_path):
    data = bytes(range(256)) * 10
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    arrived = [
        {"number": 1, "size": 1000, "sha256": sha256(data[:1000])},
        {"number": 2, "size": 1000, "sha256": sha256(b"other bytes")},
    ]
    stub.on("GET /v1/uploads/upl_1", reply(upload() | {"parts": arrived}))
    stub.on("PUT /v1/uploads/upl_1/parts/2", reply({}))
    stub.on("PUT /v1/uploads/upl_1/parts/3", reply({}))
    stub.on("POST /v1/uploads/upl_1/complete", reply(upload("complete")))
    levity.upload(path, resume="upl_1")
    assert [request.path for request in stub.requests if request.method == "PUT"] == [
        "/v1/uploads/upl_1/parts/2",
        "/v1/uploads/upl_1/parts/3",
    ]


def test_resuming_a_complete_upload_of_another_file_is_refused(stub, levity, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"mine")
    stub.on("GET /v1/uploads/upl_1", reply(upload("complete", sha256=sha256(b"theirs"))))
    with pytest.raises(LevityError) as error:
        levity.upload(path, resume="upl_1")
    assert error.value.code == "digest_mismatch"


def test_file_that_shrinks_meanwhile_is_noticed(stub, levity, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x" * 250_000)

    def shrink(_request):
        path.write_bytes(b"x" * 150_000)
        return reply({})

    stub.on("POST /v1/uploads", reply(upload(part_size=100_000), 201))
    stub.on("PUT /v1/uploads/upl_1/parts/1", shrink)
    with pytest.raises(LevityError) as error:
        levity.upload(path)
    assert error.value.code == "file_changed"


def test_model_is_waited_for(stub, levity, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"graph")
    weights = tmp_path / "w.bin"
    weights.write_bytes(b"weights")
    stub.on("POST /v1/uploads", reply(upload() | {"id": "upl_2"}, 201), reply(upload(), 201))
    stub.on("PUT /v1/uploads/upl_1/content", reply(upload("complete")))
    stub.on("PUT /v1/uploads/upl_2/content", reply(upload("complete") | {"id": "upl_2"}))
    stub.on("POST /v1/models", reply({"id": "mdl_1", "state": "inspecting"}, 202))
    stub.on("GET /v1/models/mdl_1", reply({"id": "mdl_1", "state": "ready", "summary": {"macs": 5}, "new_field": 1}))
    model = levity.create_model(path, external_data={"w.bin": weights}, wait=40)
    assert model.summary == {"macs": 5}
    assert model.raw["new_field"] == 1
    request = stub.sent("POST /v1/models")[0]
    assert request.headers["prefer"] == "wait=30"
    assert request.json == {
        "upload_id": "upl_1",
        "name": "m.onnx",
        "external_data": [{"name": "w.bin", "upload_id": "upl_2"}],
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("torchvision:resnet18", {"name": "torchvision:resnet18"}),
        ({"layers": [{"type": "relu"}]}, {"layers": [{"type": "relu"}]}),
    ],
)
def test_weights_with_their_architecture(stub, levity, tmp_path, given, sent):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    stub.on("POST /v1/uploads", reply(upload(), 201))
    stub.on("PUT /v1/uploads/upl_1/content", reply(upload("complete")))
    source = {"architecture": sent, "input": None, "file": {"name": "weights"}}
    stub.on("POST /v1/models", reply({"id": "mdl_1", "state": "ready", "source": source}, 201))
    model = levity.create_model(path, architecture=given, input={"shape": [3]})
    assert model.source == source
    request = stub.sent("POST /v1/models")[0].json
    assert (request["architecture"], request["input"]) == (sent, {"shape": [3]})


def test_rejected_model_is_an_error_with_its_code(stub, levity, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"GIF89a")
    stub.on("POST /v1/uploads", reply(upload(), 201))
    stub.on("PUT /v1/uploads/upl_1/content", reply(upload("complete")))
    stub.on("POST /v1/models", reply({"id": "mdl_1", "state": "inspecting"}, 202))
    rejected = {"id": "mdl_1", "state": "rejected", "error": {"code": "not_onnx", "message": "It is a picture."}}
    stub.on("GET /v1/models/mdl_1", reply(rejected))
    with pytest.raises(LevityError, match="It is a picture") as error:
        levity.create_model(path)
    assert error.value.code == "not_onnx"


def artifact(data, **more):
    return Answer(200, data, {"etag": f'"{sha256(data)}"'}, **more)


def test_download_is_verified_and_lands_under_its_name(stub, levity, tmp_path):
    stub.on("GET /v1/jobs/job_1/artifacts/model.onnx", artifact(b"weights"))
    path = levity.download("job_1", "model.onnx", tmp_path)
    assert path == tmp_path / "model.onnx"
    assert path.read_bytes() == b"weights"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_comes_back_as_an_onnx_file(stub, levity, tmp_path):
    stub.on("GET /v1/models/mdl_1/content", artifact(b"graph"))
    assert levity.download_model("mdl_1", tmp_path) == tmp_path / "model.onnx"
    assert (tmp_path / "model.onnx").read_bytes() == b"graph"


def test_broken_download_goes_on_where_it_broke(stub, levity, tmp_path):
    data = bytes(range(256)) * 40

    def rest(request):
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        assert request.headers["if-range"] == f'"{sha256(data)}"'
        assert 0 < start <= 5000
        return Answer(206, data[start:], {"etag": f'"{sha256(data)}"'})

    stub.on("GET /v1/jobs/job_1/artifacts/model.onnx", artifact(data, truncate_to=5000), rest)
    levity.download("job_1", "model.onnx", tmp_path / "deep" / "m.onnx")
    assert (tmp_path / "deep" / "m.onnx").read_bytes() == data
    assert len(stub.requests) == 2


def test_download_starts_over_when_the_service_sends_all_again(stub, levity, tmp_path):
    data = bytes(range(256)) * 40
    stub.on("GET /v1/jobs/job_1/artifacts/model.onnx", artifact(data, truncate_to=5000), artifact(data))
    assert levity.download("job_1", "model.onnx", tmp_path).read_bytes() == data


def test_download_with_wrong_bytes_leaves_the_old_file_alone(stub, levity, tmp_path):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    stub.on("GET /v1/jobs/job_1/artifacts/model.onnx", Answer(200, b"evil", {"etag": f'"{sha256(b"good")}"'}))
    with pytest.raises(LevityError) as error:
        levity.download("job_1", "model.onnx", target)
    assert error.value.code == "digest_mismatch"
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_metrics_of_a_finished_job_are_typed(stub, levity):
    metric = {"name": "accuracy", "unit": "fraction", "direction": "higher_is_better", "original": 0.97, "result": 0.96}
    stub.on("GET /v1/jobs/job_1", reply(JOB | {"state": "succeeded", "metrics": [metric], "notes": ["slower"]}))
    job = levity.get_job("job_1")
    assert job.terminal
    assert [(entry.name, entry.original, entry.result) for entry in job.metrics] == [("accuracy", 0.97, 0.96)]
    assert job.notes == ["slower"]
    assert json.loads(stub.requests[0].body or b"null") is None
