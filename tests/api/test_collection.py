"""When deleting through the API frees bytes."""

from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import update

from catalog.errors import StoreUnavailable
from catalog.storage.collector import Collector
from catalog.storage.tables import BlobRow
from tests.api.harness import assert_problem
from tests.api.test_metrics import numbers


@pytest.fixture
def collect(service):
    """Rounds of the collector, a grace period apart."""

    def rounds(number=2):
        done = []
        for _ in range(number):
            done.append(Collector(service.settings, service.database, service.blobs).run())
            with service.database.write() as session:
                older = {"stored_at": BlobRow.stored_at - 10**6, "unused_since": BlobRow.unused_since - 10**6}
                session.execute(update(BlobRow).values(**older).execution_options(synchronize_session=False))
        return done

    with service.database.write() as session:
        session.execute(update(BlobRow).values(stored_at=0.0))
    return rounds


def test_the_bytes_go_with_the_last_name(service, http, collect):
    content = b"of a model alone"
    sha256 = hashlib.sha256(content).hexdigest()
    upload = service.upload(content)
    model = http.post("/v1/models", json={"upload_id": upload}).raise_for_status().json()["id"]
    dataset = http.post("/v1/datasets", json={"upload_id": upload}).raise_for_status().json()["id"]
    for path in (f"/v1/models/{model}", f"/v1/uploads/{upload}", f"/v1/datasets/{dataset}"):
        collect(3)
        assert service.blobs.exists(sha256)
        http.delete(path).raise_for_status()
    assert service.blobs.exists(sha256), "only names are deleted at once"
    collect(3)
    assert not service.blobs.exists(sha256)
    # It can come back, and be used.
    upload = service.upload(content)
    model = http.post("/v1/models", json={"upload_id": upload}).raise_for_status().json()["id"]
    collect(3)
    assert b"".join(service.blobs.read(sha256)) == content


def test_artifacts_go_with_their_job(service, http, collect):
    content = b"an artifact of one job"
    job_id = service.job()
    service.publish(job_id, {}, {"model.onnx": (content, "application/octet-stream")})
    collect(3)
    assert http.get(f"/v1/jobs/{job_id}/artifacts/model.onnx").content == content
    http.delete(f"/v1/jobs/{job_id}").raise_for_status()
    collect(3)
    assert not service.blobs.exists(hashlib.sha256(content).hexdigest())


def test_what_was_collected_is_told_to_prometheus(service, http, collect):
    collect(1)
    before = numbers(http.get("/metrics").text)
    http.delete(f"/v1/uploads/{service.upload(b'12345')}").raise_for_status()
    collect(3)
    after = numbers(http.get("/metrics").text)
    grown = {key: after[key] - before.get(key, 0) for key in after if key[0].startswith("levity_collected")}
    assert grown[("levity_collected_blobs_total",)] >= 1
    assert grown[("levity_collected_bytes_total",)] >= 5
    assert after[("levity_store_bytes",)] > 0
    assert 0 <= after[("levity_collection_age_seconds",)] < 120


def test_a_store_that_does_not_answer(service, http, monkeypatch):
    def away(*_):
        raise StoreUnavailable("The blob store does not answer; try again later.")

    job_id = service.job()
    service.publish(job_id, {}, {"model.onnx": (b"x", "application/octet-stream")})
    upload = http.post("/v1/uploads", json={}).raise_for_status().json()["id"]
    monkeypatch.setattr("catalog.blobs.Blobs._size", away)
    for response in (
        http.get(f"/v1/jobs/{job_id}/artifacts/model.onnx"),
        http.put(f"/v1/uploads/{upload}/content", content=b"some bytes"),
    ):
        assert_problem(response, 503, "store_unavailable")
        assert response.headers["retry-after"] == "5"
    monkeypatch.undo()
    http.put(f"/v1/uploads/{upload}/content", content=b"some bytes").raise_for_status()
