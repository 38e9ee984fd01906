"""Whether a job's data can serve its pipeline and its model, as far as that is known before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from api.errors import FieldProblem, RequestError
from catalog.datasets.tables import DatasetRow
from catalog.models.tables import ModelRow
from catalog.workers.tables import WorkerRow
from compression.providers import missing
from compression.signature import DatasetSummary, ModelSummary, label_problems, mismatches
from compression.spec import PipelineSpec, missing_data


def check_data(spec: PipelineSpec, model: ModelRow, datasets: Mapping[str, DatasetRow]) -> None:
    """Refuse data that cannot work. What is still being inspected is checked by the worker.

    Args:
        spec: What is to be done.
        model: On which model.
        datasets: With which data, by role.

    Raises:
        RequestError: `calibration_data_missing`, `training_data_missing`, `dataset_mismatch` or `labels_out_of_range`.
    """
    for needed, step in spec.data_needed.items():
        if needed not in datasets:
            raise RequestError(
                f"{needed}_data_missing",
                missing_data(needed, step),
                errors=[FieldProblem(pointer=f"/data/{needed}", message="is needed by this pipeline", code="missing")],
            )
    if model.summary is None:
        return
    signature = ModelSummary.model_validate(model.summary)
    for role, dataset in datasets.items():
        if dataset.summary is None:
            continue
        data = DatasetSummary.model_validate(dataset.summary)
        problems = mismatches(signature, data)
        if problems:
            raise _refusal("dataset_mismatch", role, dataset, "; ".join(problems))
        problems = label_problems(signature, data)
        if problems:
            raise _refusal("labels_out_of_range", role, dataset, "; ".join(problems))


def check_student(spec: PipelineSpec, student_id: str | None) -> None:
    """Refuse a job whose steps need a student that it does not name, or that names one for nothing.

    Raises:
        RequestError: `student_missing` or `student_not_used`.
    """
    problem = spec.student_problem(given=student_id is not None)
    if problem is None:
        return
    code, message = problem
    raise RequestError(code, message, errors=[FieldProblem(pointer="/student_id", message=message, code=code)])


def check_provider(wanted: str, workers: Sequence[WorkerRow]) -> None:
    """Refuse an execution provider that no live worker of the job's queue has; without workers, who knows.

    Args:
        wanted: What the job asks for by name.
        workers: Those that may take it.

    Raises:
        RequestError: `provider_missing`, naming those that there are.
    """
    found = {name for worker in workers for name in worker.capabilities.get("providers", ())}
    if not found or wanted in found:
        return
    message = missing(wanted, sorted(found))
    pointer = "/benchmark/provider"
    raise RequestError(
        "provider_missing", message, errors=[FieldProblem(pointer=pointer, message=message, code="provider_missing")]
    )


def _refusal(code: str, role: str, dataset: DatasetRow, problem: str) -> RequestError:
    return RequestError(
        code,
        f"Dataset {dataset.id} does not fit the model: {problem}.",
        errors=[FieldProblem(pointer=f"/data/{role}", message=problem, code=code)],
    )
