"""Whether a job's data can serve its pipeline and its model, as far as that is known before it runs."""

from __future__ import annotations

from collections.abc import Mapping

from api.errors import FieldProblem, RequestError
from catalog.datasets.tables import DatasetRow
from catalog.models.tables import ModelRow
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


def _refusal(code: str, role: str, dataset: DatasetRow, problem: str) -> RequestError:
    return RequestError(
        code,
        f"Dataset {dataset.id} does not fit the model: {problem}.",
        errors=[FieldProblem(pointer=f"/data/{role}", message=problem, code=code)],
    )
