"""What can be done with models."""

from __future__ import annotations

from dataclasses import dataclass

from api.dependencies import PageRequest, Services
from api.inspection import queue_inspection, unused
from api.models.schemas import GRAPH_NAME, WEIGHTS_NAME, CreateModel, model_json
from catalog.db import Json
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobKind
from catalog.models.repository import Models
from catalog.uploads.repository import Uploads


@dataclass(frozen=True)
class GraphFile:
    """A model's graph in the store."""

    name: str
    sha256: str
    size: int
    media_type: str = "application/octet-stream"


class ModelService:
    """Models of one process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._database = services.database

    def create(self, body: CreateModel, *, request_id: str) -> Json:
        """Note the model and queue its inspection, both or neither."""
        with self._database.write() as session:
            uploads = Uploads(session)
            graph = uploads.get_complete(body.upload_id)
            sources = [(GRAPH_NAME if body.architecture is None else WEIGHTS_NAME, graph)]
            sources += [(file.name, uploads.get_complete(file.upload_id)) for file in body.external_data]
            files = [{"name": name, "sha256": upload.sha256, "size": upload.size} for name, upload in sources]
            source = None
            if body.architecture is not None:
                source = {**body.model_dump(mode="json", include={"architecture", "input"}), "file": files[0]}
            row = Models(session).add(name=body.name or graph.filename, files=files, source=source)
            queue_inspection(
                session, self._services, JobKind.INSPECT_MODEL, model_id=row.id, name=row.name, request_id=request_id
            )
        return model_json(row)

    def get(self, model_id: str) -> Json:
        with self._database.read() as session:
            return model_json(Models(session).get(model_id))

    def graph(self, model_id: str) -> GraphFile:
        """The model's graph, once inspection has found it sound."""
        with self._database.read() as session:
            row = Models(session).get_ready(model_id)
            return GraphFile(**row.files[0])

    def list(self, page: PageRequest) -> Json:
        with self._database.read() as session:
            rows = Models(session).page(limit=page.limit + 1, before_id=page.before_id)
        return page.answer(rows, [model_json(row) for row in rows])

    def delete(self, model_id: str) -> None:
        with self._database.write() as session:
            models = Models(session)
            row = models.get(model_id, lock=True)
            unused(f"Model {model_id}", Jobs(session).active_using(model_id=model_id))
            models.delete(row)
