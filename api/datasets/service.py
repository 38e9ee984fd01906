"""What can be done with datasets."""

from __future__ import annotations

from api.datasets.schemas import CreateDataset, dataset_json
from api.dependencies import PageRequest, Services
from api.inspection import queue_inspection, unused
from catalog.datasets.repository import Datasets
from catalog.db import Json
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobKind
from catalog.uploads.repository import Uploads


class DatasetService:
    """Datasets of one process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._database = services.database

    def create(self, body: CreateDataset, *, request_id: str) -> Json:
        """Note the dataset and queue its inspection, both or neither."""
        images = None if body.images is None else body.images.model_dump(mode="json")
        with self._database.write() as session:
            upload = Uploads(session).get_complete(body.upload_id)
            row = Datasets(session).add(
                name=body.name or upload.filename, sha256=upload.sha256 or "", size=upload.size or 0, images=images
            )
            queue_inspection(
                session,
                self._services,
                JobKind.INSPECT_DATASET,
                datasets={"subject": row.id},
                name=row.name,
                request_id=request_id,
            )
        return dataset_json(row)

    def get(self, dataset_id: str) -> Json:
        with self._database.read() as session:
            return dataset_json(Datasets(session).get(dataset_id))

    def list(self, page: PageRequest) -> Json:
        with self._database.read() as session:
            rows = Datasets(session).page(limit=page.limit + 1, before_id=page.before_id)
        return page.answer(rows, [dataset_json(row) for row in rows])

    def delete(self, dataset_id: str) -> None:
        with self._database.write() as session:
            datasets = Datasets(session)
            row = datasets.get(dataset_id, lock=True)
            unused(f"Dataset {dataset_id}", Jobs(session).active_using(dataset_id=dataset_id))
            datasets.delete(row)
