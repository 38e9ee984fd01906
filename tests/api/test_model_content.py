"""The graph of a model over HTTP."""

from __future__ import annotations

import hashlib
from io import BytesIO

from catalog.models.states import ModelState
from catalog.models.tables import ModelRow
from tests.api.harness import assert_problem

GRAPH = b"the decoded graph" * 100


def test_the_graph_that_jobs_work_on(http, service):
    model_id = service.model()
    stored = http.get(f"/v1/models/{model_id}").json()["files"][0]
    response = http.get(f"/v1/models/{model_id}/content")
    assert response.status_code == 200
    assert hashlib.sha256(response.content).hexdigest() == stored["sha256"]
    assert response.headers["etag"] == f'"{stored["sha256"]}"'
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''model.onnx"
    head = http.head(f"/v1/models/{model_id}/content")
    assert (head.content, head.headers["content-length"]) == (b"", str(stored["size"]))
    again = http.get(f"/v1/models/{model_id}/content", headers={"if-none-match": response.headers["etag"]})
    assert again.status_code == 304
    part = http.get(f"/v1/models/{model_id}/content", headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, response.content[2:5])


def test_what_was_made_of_an_upload_takes_its_place(http, service):
    model_id = service.model()
    sha256, size = service.blobs.take_in([GRAPH])
    service.change(ModelRow, model_id, files=[{"name": "model.onnx", "sha256": sha256, "size": size}])
    assert http.get(f"/v1/models/{model_id}/content").content == GRAPH
    assert len(BytesIO(GRAPH).read()) == size


def test_not_before_inspection_has_found_it_sound(http, service):
    model_id = service.model(summary=None)
    assert_problem(http.get(f"/v1/models/{model_id}/content"), 409, "model_not_ready")
    service.change(ModelRow, model_id, state=ModelState.REJECTED, error={"code": "not_onnx", "message": "No model."})
    problem = assert_problem(http.get(f"/v1/models/{model_id}/content"), 409, "model_rejected")
    assert "No model." in problem["detail"]
    assert_problem(http.get("/v1/models/mdl_none/content"), 404, "model_not_found")
