"""The client: typed access to a running service."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from levity import _files
from levity._events import follow
from levity._transport import Transport
from levity._webhooks import WebhookMethods
from levity.errors import LevityError
from levity.resources import Dataset, Event, Job, Json, Model, Resource, Upload

Source = str | Path | Upload
"""A local file, or an upload that is complete."""
_R = TypeVar("_R", bound=Resource)
_Registered = TypeVar("_Registered", Model, Dataset)

# The service answers `Prefer: wait=N` after 30 s at the latest.
_LONGEST_WAIT_SECONDS = 30
_POLL_SECONDS = 0.2


class Levity(WebhookMethods):
    """A connection to a Levity service. Use it as a context manager, or call `close`.

    Requests that can be repeated without harm are, with growing pauses, when the service does not answer or asks for
    patience. Everything that goes wrong is a `LevityError`. One instance may be used from several threads.

    Args:
        base_url: Where the service answers, such as `http://127.0.0.1:8000`.
        timeout: Seconds that connecting, sending or receiving a piece may take.
        api_key: Where the service asks for one; `LEVITY_API_KEY` unless given.
    """

    def __init__(
        self, base_url: str = "http://127.0.0.1:8000", *, timeout: float = 60, api_key: str | None = None
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = Transport(self.base_url, timeout, api_key or os.environ.get("LEVITY_API_KEY"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Uploads

    def upload(
        self,
        path: str | Path,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        resume: str | None = None,
    ) -> Upload:
        """Send a file, each part with its hash; a large one in parts, so that it can be resumed.

        Args:
            path: The file. It must not change meanwhile (`file_changed`).
            on_progress: Called with the bytes sent so far and the bytes in all.
            resume: Id of an upload of the same file that was interrupted: parts that arrived are not sent again.
        """
        return _files.send(self._http, Path(path), on_progress=on_progress, resume=resume)

    def get_upload(self, upload_id: str) -> Upload:
        """The upload with the parts that arrived."""
        return Upload.from_json(self._get(f"/v1/uploads/{upload_id}"))

    def delete_upload(self, upload_id: str) -> None:
        """Forget an upload; models and datasets made from it stay."""
        self._http.request("DELETE", f"/v1/uploads/{upload_id}")

    # Models and datasets

    def create_model(
        self,
        source: Source,
        *,
        name: str | None = None,
        external_data: Mapping[str, Source] | None = None,
        architecture: str | Mapping[str, Any] | None = None,
        input: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,  # noqa: A002 - the service's name
        wait: float = 30,
    ) -> Model:
        """Register a model, or weights with their architecture, and have it inspected.

        Args:
            source: The `.onnx` or `.levity` file, or a `state_dict` as safetensors or saved by torch.
            name: What people call it; the file's name unless given.
            external_data: Files that hold weights outside the graph, by the location that the graph names.
            architecture: The network that a `state_dict` belongs to: a name such as `torchvision:resnet18`, or
                `{"name": …, "arguments": {…}}`, `{"name": …, "config": {…}}` or `{"layers": […]}`.
            input: What that network takes, without the batch axis, such as `{"shape": [3, 224, 224]}`; the
                architecture's usual input unless given.
            wait: Seconds to wait for the inspection. The model's `state` is `inspecting` when it took longer.

        Raises:
            LevityError: Among others, with the inspection's code, when the model was rejected.
        """
        files = [
            {"name": location, "upload_id": self._uploaded(file).id} for location, file in (external_data or {}).items()
        ]
        if isinstance(architecture, str):
            architecture = {"name": architecture}
        return self._register(
            Model, source, wait, name=name, external_data=files or None, architecture=architecture, input=input
        )

    def create_dataset(
        self, source: Source, *, name: str | None = None, images: Mapping[str, Any] | None = None, wait: float = 30
    ) -> Dataset:
        """Register a dataset (safetensors, `.npz`, zip of class folders) and have it inspected.

        Args:
            source: The file.
            name: What people call it; the file's name unless given.
            images: How pictures become samples, for a zip of them: `height`, `width`, `mean`, `std`, …
            wait: Seconds to wait for the inspection. The dataset's `state` is `inspecting` when it took longer.

        Raises:
            LevityError: Among others, with the inspection's code, when the dataset was rejected.
        """
        return self._register(Dataset, source, wait, name=name, images=images and dict(images))

    def get_model(self, model_id: str) -> Model:
        return Model.from_json(self._get(f"/v1/models/{model_id}"))

    def get_dataset(self, dataset_id: str) -> Dataset:
        return Dataset.from_json(self._get(f"/v1/datasets/{dataset_id}"))

    def download_model(self, model_id: str, target: str | Path) -> Path:
        """Fetch a model as an ONNX file, whatever it was uploaded as; see `download`.

        Args:
            model_id: The model.
            target: The file to write, or an existing folder to write `model.onnx` in.

        Raises:
            LevityError: `digest_mismatch` when the bytes are not those that the service announced.
        """
        path = Path(target)
        if path.is_dir():
            path /= "model.onnx"
        _files.receive(self._http, f"/v1/models/{model_id}/content", path)
        return path

    def models(self) -> Iterator[Model]:
        """All models, newest first."""
        return self._pages(Model, "/v1/models", {})

    def datasets(self) -> Iterator[Dataset]:
        """All datasets, newest first."""
        return self._pages(Dataset, "/v1/datasets", {})

    def delete_model(self, model_id: str) -> None:
        """Forget a model. Refused with `in_use` while an unfinished job needs it."""
        self._http.request("DELETE", f"/v1/models/{model_id}")

    def delete_dataset(self, dataset_id: str) -> None:
        """Forget a dataset. Refused with `in_use` while an unfinished job needs it."""
        self._http.request("DELETE", f"/v1/datasets/{dataset_id}")

    # Jobs

    def submit(
        self,
        model: str | Model,
        pipeline: Sequence[Mapping[str, Any]],
        *,
        data: Mapping[str, str | Dataset] | None = None,
        student: str | Model | None = None,
        benchmark: Mapping[str, Any] | None = None,
        seed: int | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        time_limit_seconds: float | None = None,
        start_within_seconds: float | None = None,
        max_attempts: int | None = None,
        webhook: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a job; what is not given takes the service's default.

        Args:
            model: The model or its id.
            pipeline: Steps in order, such as `{"type": "prune", "amount": 0.5}`; `steps` lists what there is.
            data: Datasets, or their ids, by role: `calibration`, `training`, `evaluation`.
            student: The model, or its id, that a `distill` step with a student of kind `model` trains.
            benchmark: How the result is measured, such as `{"max_seconds": 10}`.
            seed: Seed of everything random.
            name: What people call the job.
            labels: Free text by key, for the caller's own bookkeeping.
            queue: `cpu` or `gpu`.
            priority: 0 to 9; higher is served first.
            time_limit_seconds: Wall time that an attempt may take; then the job expires.
            start_within_seconds: The job expires when no worker took it by then.
            max_attempts: Tries that it gets before dying workers or children make it fail.
            webhook: Who is told of this job: `url`, `secret` and, if not of everything, `events`.
            idempotency_key: A second submission with the same key is the same job. One is made when none is given,
                so that a submission whose answer was lost can be repeated.
        """
        optional = {
            "data": data and {role: _id(dataset) for role, dataset in data.items()},
            "student_id": student and _id(student),
            "benchmark": benchmark and dict(benchmark),
            "seed": seed,
            "name": name,
            "labels": labels and dict(labels),
            "queue": queue,
            "priority": priority,
            "time_limit_seconds": time_limit_seconds,
            "start_within_seconds": start_within_seconds,
            "max_attempts": max_attempts,
            "webhook": webhook and dict(webhook),
        }
        response = self._http.request(
            "POST",
            "/v1/jobs",
            json={
                "model_id": _id(model),
                "pipeline": [dict(step) for step in pipeline],
                **{field: value for field, value in optional.items() if value is not None},
            },
            headers={"idempotency-key": idempotency_key or str(uuid.uuid4())},
            repeatable=True,
        )
        return Job.from_json(response.json())

    def get_job(self, job_id: str) -> Job:
        return Job.from_json(self._get(f"/v1/jobs/{job_id}"))

    def jobs(self, *, state: str | None = None, model_id: str | None = None) -> Iterator[Job]:
        """Jobs, newest first, fetched page by page."""
        return self._pages(Job, "/v1/jobs", {"state": state, "model_id": model_id})

    def events(self, job_id: str, *, after: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """A job's events as they happen, up to its terminal one; a broken connection is taken up where it broke.

        Args:
            job_id: The job.
            after: Leave out events up to this sequence number.
            timeout: Seconds after which `wait_timeout` is raised; None never gives up.
        """
        return follow(self._http, job_id, after=after, timeout=timeout)

    def wait(
        self, job_id: str, *, on_event: Callable[[Event], None] | None = None, timeout: float | None = None
    ) -> Job:
        """Wait until the job has ended, well or badly, and return it.

        Args:
            job_id: The job.
            on_event: Called with each of the job's events.
            timeout: Seconds after which `wait_timeout` is raised; the job itself goes on.
        """
        for event in self.events(job_id, timeout=timeout):
            if on_event is not None:
                on_event(event)
        return self.get_job(job_id)

    def cancel(self, job_id: str) -> Job:
        """Ask the job to stop. A queued one has on return, a running one soon after."""
        return Job.from_json(self._http.request("POST", f"/v1/jobs/{job_id}/cancel", repeatable=True).json())

    def retry(self, job_id: str) -> Job:
        """Queue a job again that failed, was cancelled or expired."""
        return Job.from_json(self._http.request("POST", f"/v1/jobs/{job_id}/retry").json())

    def delete_job(self, job_id: str) -> None:
        """Forget a job that has ended, with its artifacts."""
        self._http.request("DELETE", f"/v1/jobs/{job_id}")

    def download(self, job_id: str, name: str, target: str | Path) -> Path:
        """Fetch an artifact. The file appears whole and with the right hash, or not at all.

        Args:
            job_id: The job.
            name: One of the job's artifacts, such as `model.onnx`.
            target: The file to write, or an existing folder to write it in.

        Raises:
            LevityError: `digest_mismatch` when the bytes are not those that the service announced.
        """
        path = Path(target)
        if path.is_dir():
            path /= name
        _files.receive(self._http, f"/v1/jobs/{job_id}/artifacts/{name}", path)
        return path

    # The service

    def steps(self) -> Json:
        """Every step with its JSON Schema, defaults and description."""
        return self._get("/v1/steps")

    def capabilities(self) -> Json:
        """What this deployment can do: version, queues, CPU flags, GPUs, limits."""
        return self._get("/v1/capabilities")

    def _get(self, path: str, **params: object) -> Json:
        body: Json = self._http.request("GET", path, params=params).json()
        return body

    def _pages(self, kind: type[_R], path: str, query: Mapping[str, Any]) -> Iterator[_R]:
        return map(kind.from_json, self._http.pages(path, query))

    def _uploaded(self, source: Source) -> Upload:
        return source if isinstance(source, Upload) else self.upload(source)

    def _register(
        self, kind: type[_Registered], source: Source, wait: float, *, name: str | None, **more: object
    ) -> _Registered:
        path = f"/v1/{kind.__name__.lower()}s"
        known = {"upload_id": self._uploaded(source).id, "name": name or _name_of(source), **more}
        body = {field: value for field, value in known.items() if value is not None}
        deadline = time.monotonic() + wait
        first = max(0, min(int(wait), _LONGEST_WAIT_SECONDS))
        headers = {"prefer": f"wait={first}"} if first else None
        answer: Json = self._http.request("POST", path, json=body, headers=headers, read_timeout=first + 60).json()
        while answer["state"] == "inspecting" and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            answer = self._get(f"{path}/{answer['id']}")
        if answer["state"] == "rejected":
            error = answer.get("error") or {}
            raise LevityError(error.get("code", "rejected"), error.get("message", "The file was rejected."))
        return kind.from_json(answer)


def _id(thing: str | Model | Dataset) -> str:
    return thing if isinstance(thing, str) else thing.id


def _name_of(source: Source) -> str | None:
    return source.raw.get("filename") if isinstance(source, Upload) else Path(source).name
