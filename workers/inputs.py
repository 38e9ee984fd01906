"""From a claimed job to what its child needs: files of its own, and a request that names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from catalog.blobs import Blobs
from catalog.datasets.repository import Datasets
from catalog.datasets.tables import DatasetRow
from catalog.db import Database, Json
from catalog.errors import NotFound
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobKind
from catalog.jobs.step_cache import FinishedSteps
from catalog.jobs.tables import JobRow
from catalog.models.repository import Models
from catalog.models.tables import ModelRow
from catalog.tenancy import DEFAULT_TENANT, Actor
from compression.cache import checkpoint_key, step_keys
from compression.data_spec import ImagePreprocessing
from compression.graph.architectures.spec import COMPANION, MODEL, ModelSource
from compression.quantization.isa import cpu_facts
from compression.spec import PipelineSpec
from workers.failures import JobFailed
from workers.files import check_plain_name, remove_tree
from workers.protocol import CACHE_FOLDER, DatasetInput, Request

_MODEL_FOLDER = "in/model"
_STUDENT_FOLDER = "in/student"
_DATA_FOLDER = "in/data"


@dataclass(frozen=True)
class Inputs:
    """What a job works on, as the database names it."""

    model: ModelRow | None
    datasets: dict[str, DatasetRow]
    """By role."""
    spec: PipelineSpec | None
    keys: Sequence[str]
    """The name of each step of `spec` in the step cache."""
    student: ModelRow | None = None
    tenant: str = DEFAULT_TENANT

    @property
    def size(self) -> int:
        """Bytes of all that the job is given."""
        return sum(row.size for row in (self.model, self.student, *self.datasets.values()) if row is not None)

    def may_be_made(self, names: Sequence[str]) -> bool:
        """Whether an inspection may make files of these names of the model's upload, and put them in its place.

        Of weights it makes a graph, and a graph of a `.levity` file, which only the child can tell from another.
        """
        if self.model is None or self.model.source is None:
            return list(names) in ([], [MODEL])
        return list(names) == [MODEL, COMPANION]


def find_inputs(database: Database, job: JobRow) -> Inputs:
    """Look up what the job works on.

    Raises:
        JobFailed: The model or a dataset was deleted meanwhile.
    """
    # As the job's tenant, like the submission: a job never reads what its caller could not.
    with database.acting(Actor(job.tenant, "worker")).read() as session:
        model = None if job.kind == JobKind.INSPECT_DATASET else _model(session, job.model_id)
        student = None if job.student_id is None else _model(session, job.student_id)
        datasets: dict[str, DatasetRow] = {}
        for role, dataset_id in Jobs(session).datasets(job.id).items():
            try:
                datasets[role] = Datasets(session).get(dataset_id)
            except NotFound as error:
                raise _dataset_deleted(role, dataset_id) from error
    if job.kind != JobKind.COMPRESS or model is None:
        return Inputs(model, datasets, None, (), tenant=job.tenant)
    spec = PipelineSpec.model_validate(job.spec)
    data_sha256 = {role: row.sha256 for role, row in datasets.items()}
    student_sha256 = None if student is None else student.sha256
    keys = step_keys(model.sha256, data_sha256, spec, cpu_facts(), student_sha256=student_sha256)
    return Inputs(model, datasets, spec, keys, student, job.tenant)


def _model(session: Session, model_id: str | None) -> ModelRow:
    try:
        return Models(session).get(model_id or "")
    except NotFound as error:
        raise _model_deleted(model_id) from error


def lay_out(job: JobRow, inputs: Inputs, blobs: Blobs, folder: Path, between: Callable[[], None]) -> Request:
    """Copy the inputs into a child's folder and describe them.

    Args:
        job: What is to be done.
        inputs: What to do it on.
        blobs: Where the bytes are.
        folder: The child's folder.
        between: Called before each file; may raise to stop.

    Raises:
        JobFailed: The model or a dataset was deleted meanwhile.
        StoreFull: There is no room for the copies.
    """
    model = _lay_out_model(inputs.model, blobs, folder, _MODEL_FOLDER, between)
    student = _lay_out_model(inputs.student, blobs, folder, _STUDENT_FOLDER, between)
    data: dict[str, DatasetInput] = {}
    for role, row in inputs.datasets.items():
        name = check_plain_name(role)
        try:
            fetch_all([{"name": name, "sha256": row.sha256}], blobs, folder / _DATA_FOLDER, between)
        except (NotFound, FileNotFoundError) as error:
            raise _dataset_deleted(role, row.id) from error
        images = None if row.images is None else ImagePreprocessing.model_validate(row.images)
        data[role] = DatasetInput(path=f"{_DATA_FOLDER}/{name}", sha256=row.sha256, images=images)
    source = None
    if job.kind == JobKind.INSPECT_MODEL and inputs.model is not None and inputs.model.source is not None:
        known = inputs.model.source
        source = ModelSource.model_validate({"architecture": known["architecture"], "input": known["input"]})
    return Request(
        kind=JobKind(job.kind).value,
        model=model,
        model_sha256=None if inputs.model is None else inputs.model.sha256,
        student=student,
        student_sha256=None if inputs.student is None else inputs.student.sha256,
        source=source,
        data=data,
        spec=inputs.spec,
    )


def _lay_out_model(
    row: ModelRow | None, blobs: Blobs, folder: Path, name: str, between: Callable[[], None]
) -> str | None:
    """Copy a model's files; the path of its graph within the child's folder."""
    if row is None:
        return None
    try:
        fetch_all(row.files, blobs, folder / name, between)
    except (NotFound, FileNotFoundError) as error:
        raise _model_deleted(row.id) from error
    return f"{name}/{row.files[0]['name']}"


def lay_out_finished_steps(
    inputs: Inputs, database: Database, blobs: Blobs, folder: Path, between: Callable[[], None]
) -> int:
    """Copy what the last step that is known left into a child's folder, and how far the next one got.

    Returns:
        The number of steps that need not run.
    """
    if not inputs.keys:
        return 0
    with database.write() as session:
        row = FinishedSteps(session, inputs.tenant).longest_prefix(inputs.keys)
    finished = 0
    if row is not None and _lay_out_cached(row.key, row.files, blobs, folder, between):
        finished = list(inputs.keys).index(row.key) + 1
    if finished < len(inputs.keys):
        begun = checkpoint_key(inputs.keys[finished])
        with database.write() as session:
            files = FinishedSteps(session, inputs.tenant).get(begun)
        if files:
            _lay_out_cached(begun, files, blobs, folder, between)
    return finished


def _lay_out_cached(key: str, files: Sequence[Json], blobs: Blobs, folder: Path, between: Callable[[], None]) -> bool:
    """Copy what is kept under a key into a child's folder; False when its bytes are gone."""
    target = folder / CACHE_FOLDER / key
    try:
        fetch_all(files, blobs, target, between)
    except (NotFound, FileNotFoundError):
        remove_tree(target)
        return False
    return True


def fetch_all(files: Sequence[Json], blobs: Blobs, folder: Path, between: Callable[[], None]) -> None:
    """Write private copies of `files` into one flat folder."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in files:
        between()
        target = folder / check_plain_name(file["name"])
        target.unlink(missing_ok=True)
        blobs.fetch(file["sha256"], target)


def _model_deleted(model_id: str | None) -> JobFailed:
    return JobFailed("model_deleted", f"Model {model_id} was deleted before the job could read it.")


def _dataset_deleted(role: str, dataset_id: str) -> JobFailed:
    return JobFailed(
        "dataset_deleted", f"Dataset {dataset_id}, the job's {role} data, was deleted before the job could read it."
    )
