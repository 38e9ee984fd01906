"""From local files to local files: everything that a compression takes, against a running service."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from levity.client import Levity
from levity.console import ProgressBar
from levity.errors import LevityError
from levity.resources import Dataset, Job, Model

# A large network is built, traced and run, which takes longer than a look into a file.
_EXPORT_SECONDS = 600


def compress(
    levity: Levity,
    model_file: Path,
    pipeline: Sequence[Mapping[str, Any]],
    *,
    out: Path,
    data_files: Mapping[str, Path],
    external_data: Sequence[Path] = (),
    images: Mapping[str, Any] | None = None,
    architecture: str | Mapping[str, Any] | None = None,
    model_input: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> Job:
    """Upload, submit, show progress on stderr, download every artifact into `out`.

    Args:
        levity: The service.
        model_file: An ONNX file, or the weights of `architecture`.
        pipeline: Steps in order.
        out: Folder for the artifacts; made when missing.
        data_files: Dataset files by role; the same file in two roles is sent once.
        external_data: Files with weights that the model names.
        images: How pictures become samples, for datasets that are zips of them.
        architecture: The network that the weights belong to, as `Levity.create_model` takes it.
        model_input: What it takes, likewise.

    Raises:
        LevityError: Also when the job did not succeed, with the job's error code.
    """
    model = levity.create_model(
        model_file,
        external_data={file.name: file for file in external_data},
        architecture=architecture,
        input=model_input,
        wait=_EXPORT_SECONDS if architecture else 30,
    )
    registered: dict[Path, Dataset] = {}
    for file in data_files.values():
        if file.resolve() not in registered:
            registered[file.resolve()] = levity.create_dataset(file, images=images)
    things: list[Model | Dataset] = [model, *registered.values()]
    for thing in things:
        _check_inspected(levity, thing)
    data = {role: registered[file.resolve()] for role, file in data_files.items()}
    job = levity.submit(model, pipeline, data=data, name=model_file.name)
    job = watch(levity, job.id)
    check_succeeded(job)
    out.mkdir(parents=True, exist_ok=True)
    for artifact in job.artifacts:
        levity.download(job.id, artifact.name, out / artifact.name)
    return job


def watch(levity: Levity, job_id: str) -> Job:
    """Wait for the job with a progress bar. Ctrl-C cancels the job."""
    bar = ProgressBar()
    try:
        return levity.wait(job_id, on_event=bar)
    except KeyboardInterrupt:
        levity.cancel(job_id)
        raise
    finally:
        bar.close()


def check_succeeded(job: Job) -> None:
    """Raise unless the job succeeded."""
    if job.state == "succeeded":
        return
    error = job.error or {"code": f"job_{job.state}", "message": ""}
    if error.get("log_tail"):
        sys.stderr.write(f"{error['log_tail'].rstrip()}\n")
    raise LevityError(error["code"], f"Job {job.id} {job.state}: {error['message'] or 'no reason was recorded.'}")


def _check_inspected(levity: Levity, thing: Model | Dataset) -> None:
    if thing.state == "inspecting":
        raise LevityError(
            "not_inspected",
            f"{thing.name} is not inspected yet: no worker serves the `io` queue, or it is busy. "
            f"Ask {levity.base_url}/v1/capabilities.",
        )
