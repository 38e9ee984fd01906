"""A real server in a thread, and shortcuts to what workers would do."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from sqlalchemy import select, update

from api.app import create_app
from catalog.blobs import Blobs
from catalog.datasets.tables import DatasetRow
from catalog.db import Database
from catalog.jobs.leases import Claim, Leases, NewArtifact
from catalog.jobs.states import TERMINAL, JobState, Queue
from catalog.jobs.tables import JobRow
from catalog.models.tables import ModelRow
from catalog.settings import Settings
from compression.signature import DatasetSummary, ModelSummary, TensorSpec

PRUNE = {"type": "prune", "amount": 0.5}
STATIC = {"type": "quantize", "mode": "static"}
ERROR = {"code": "child_crashed", "message": "It crashed.", "retryable": True, "log_tail": "boom"}
SIGNATURE = ModelSummary(
    format="onnx",
    ir_version=10,
    opsets={"ai.onnx": 20},
    producer="tests",
    inputs=(TensorSpec(name="image", dtype="float32", shape=("n", 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("n", 10)),),
    operators={"Gemm": 1},
    nodes=1,
    parameters=650,
    nonzero_parameters=650,
    parameter_bytes=2600,
    macs=640,
    file_bytes=3000,
    external_data_bytes=0,
    quantized=False,
)


def data_summary(*, shape=(16, 1, 8, 8), dtype="float32", classes=10) -> DatasetSummary:
    array = TensorSpec(name="image", dtype=dtype, shape=shape)
    return DatasetSummary(
        format="npz", samples=shape[0], arrays=(array,), has_labels=classes is not None, classes=classes, bytes=4096
    )


def digest_field(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


@dataclass
class Service:
    settings: Settings
    url: str
    database: Database
    blobs: Blobs
    http: httpx.Client = field(repr=False)

    # What callers do

    def upload(self, content: bytes = b"some bytes", **announced) -> str:
        created = self.http.post("/v1/uploads", json=announced).raise_for_status().json()
        self.http.put(f"/v1/uploads/{created['id']}/content", content=content).raise_for_status()
        return created["id"]

    def model(self, *, summary: ModelSummary | None = SIGNATURE, **fields) -> str:
        """A registered model, inspected with this outcome."""
        body = {"upload_id": self.upload(), **fields}
        model_id = self.http.post("/v1/models", json=body).raise_for_status().json()["id"]
        if summary is not None:
            self.change(ModelRow, model_id, state="ready", summary=summary.model_dump(mode="json"))
        return model_id

    def dataset(self, summary: DatasetSummary | None = None) -> str:
        created = self.http.post("/v1/datasets", json={"upload_id": self.upload()}).raise_for_status().json()
        summary = summary or data_summary()
        self.change(DatasetRow, created["id"], state="ready", summary=summary.model_dump(mode="json"))
        return created["id"]

    def submit(self, model_id: str | None = None, *, pipeline=(PRUNE,), headers=None, **fields) -> httpx.Response:
        body = {"model_id": model_id or self.model(), "pipeline": list(pipeline), **fields}
        return self.http.post("/v1/jobs", json=body, headers=headers)

    def job(self, **fields) -> str:
        return self.submit(**fields).raise_for_status().json()["id"]

    def get(self, job_id: str) -> dict:
        return self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()

    # What workers do

    def claim(self, job_id: str, *, queue: Queue = Queue.CPU) -> Claim:
        with self.database.write() as session:
            claimed = Leases(session).claim(queue, owner="worker", lease_seconds=600)
        assert claimed is not None
        assert claimed[0].job_id == job_id
        return claimed[0]

    def leases(self, write) -> None:
        with self.database.write() as session:
            write(Leases(session))

    def publish(self, job_id: str, result: dict, files: dict[str, tuple[bytes, str]] | None = None) -> None:
        """Run the job, as far as anybody can see."""
        claim = self.claim(job_id)
        artifacts = []
        for name, (content, media_type) in (files or {}).items():
            sha256, size = self.blobs.take_in(iter([content]))
            artifacts.append(NewArtifact(name, sha256, size, media_type))
        self.leases(lambda leases: leases.publish(claim, artifacts=artifacts, result=result))

    def fail(self, job_id: str) -> None:
        claim = self.claim(job_id)
        self.leases(lambda leases: leases.fail(claim, ERROR, retry=False))

    # The database

    def change(self, table, row_id: str, **values) -> None:
        with self.database.write() as session:
            session.execute(update(table).where(table.id == row_id).values(**values))

    def rows(self, table, **wanted) -> list:
        with self.database.read() as session:
            return list(session.scalars(select(table).filter_by(**wanted)))

    def end_all_jobs(self) -> None:
        """Leave nothing that the next test's worker could claim."""
        with self.database.write() as session:
            session.execute(
                update(JobRow).where(JobRow.state.not_in(TERMINAL)).values(state=JobState.CANCELLED, owner=None)
            )


@contextmanager
def serve(settings: Settings) -> Iterator[Service]:
    """The application behind a real server, as long as the block runs."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), port=0, log_level="warning", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    database = Database(settings.resolved_database_url, pool_size=2)
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
            yield Service(settings, url, database, Blobs.from_settings(settings), http)
    finally:
        server.should_exit = True
        thread.join(20)
        database.dispose()
        assert not thread.is_alive()


def assert_problem(response: httpx.Response, status: int, code: str, *pointers: str) -> dict:
    """The response is a problem in full, and names these parts of the request."""
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:levity:problem:{code}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"].endswith((".", ")")) or problem["errors"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert [error["pointer"] for error in problem.get("errors", [])] == list(pointers)
    return problem
