"""What a worker and its child say to each other.

The worker leaves a request file in the child's folder and sends one byte. The child answers with JSON lines. All
paths are relative to the child's folder, which the two may know by different names.

The child works on files from strangers, so the worker takes none of its words on trust: `read_event` bounds, parses
and validates each line, and what names a file is opened by `workers.files` only.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from compression.data_spec import ImagePreprocessing
from compression.graph.architectures.spec import ModelSource
from compression.graph.limits import LARGEST_MESSAGE
from compression.result import ArtifactFile, PipelineResult
from compression.signature import DatasetSummary, ModelSummary
from compression.spec import PipelineSpec

REQUEST_FILE = "request.json"
OUT_FOLDER = "out"
"""Where `compression.pipeline.run` leaves its artifacts."""
CACHE_FOLDER = "cache"
"""Finished steps from earlier runs, a folder for each key."""
MAX_LINE_BYTES = 16 * 2**20


class ProtocolViolation(Exception):
    """The child said something that it must not say."""


class Limits(BaseModel):
    """What a child imposes on itself before it reads anything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address_space: int | None
    """Bytes; None where a GPU is used, because CUDA reserves far more address space than it ever touches."""
    processes: int | None
    """Processes and threads; None outside a user namespace, where all of the user's processes would count."""
    open_files: int = 1024
    niceness: int = 0
    die_with: int | None
    """Process id of the parent whose end is also the child's end; None where the sandbox takes care of that."""


class DatasetInput(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    images: ImagePreprocessing | None


class Request(BaseModel):
    """One job, as its child sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["compress", "inspect_model", "inspect_dataset"]
    model: str | None = None
    """The graph's file; external data lies beside it."""
    model_sha256: str | None = None
    source: ModelSource | None = None
    """For an inspection: the architecture of weights that come without a graph."""
    student: str | None = None
    """A second graph's file, likewise."""
    student_sha256: str | None = None
    data: dict[str, DatasetInput] = {}
    """Datasets by role."""
    spec: PipelineSpec | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    gpu: str = ""
    """Name and size of the device, for messages."""
    threads: int = 0
    held_bytes: int = LARGEST_MESSAGE
    """External data of more bytes stays in its files, where the steps can do without it in memory."""
    traced: bool = False
    """Whether the worker wants to hear of spans."""


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Progressed(_Event):
    type: Literal["progress"] = "progress"
    phase: str = Field(max_length=32)
    fraction: float = Field(ge=0, le=1, allow_inf_nan=False)
    message: str = Field(default="", max_length=1000)


class StepFinished(_Event):
    """A step left its files in `folder`, or with a checkpoint's key how far it got; they do not change any more."""

    type: Literal["step"] = "step"
    key: str = Field(pattern="^[0-9a-f]{64}$")
    folder: str = Field(max_length=4096)


class SpanBegun(_Event):
    """Something began that a trace shows."""

    type: Literal["span_begun"] = "span_begun"
    id: int = Field(ge=0, le=2**31)
    parent: int | None = Field(default=None, ge=0, le=2**31)
    """The span within which it began, if any."""
    name: str = Field(min_length=1, max_length=64, pattern=r"^[ -~]+$")
    at: float = Field(allow_inf_nan=False)
    """Seconds since 1970."""
    attributes: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")],
        bool
        | Annotated[int, Field(ge=-(10**15), le=10**15)]
        | Annotated[float, Field(ge=-1e15, le=1e15)]
        | Annotated[str, Field(max_length=200)],
    ] = Field(default={}, max_length=8)


class SpanEnded(_Event):
    type: Literal["span_ended"] = "span_ended"
    id: int = Field(ge=0, le=2**31)
    at: float = Field(allow_inf_nan=False)
    error: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")
    """Code or type of what went wrong."""


class Compressed(_Event):
    type: Literal["compressed"] = "compressed"
    result: PipelineResult


class ModelInspected(_Event):
    type: Literal["model_inspected"] = "model_inspected"
    summary: ModelSummary
    files: tuple[ArtifactFile, ...] = Field(default=(), max_length=2)
    """What was made of weights without a graph, or of a `.levity` file, in the folder `out`: the graph first."""


class DatasetInspected(_Event):
    type: Literal["dataset_inspected"] = "dataset_inspected"
    summary: DatasetSummary


class Failed(_Event):
    type: Literal["failed"] = "failed"
    code: str = Field(pattern="^[a-z][a-z0-9_]{0,63}$")
    message: str = Field(max_length=4000)
    retryable: bool


Event = Progressed | StepFinished | SpanBegun | SpanEnded | Compressed | ModelInspected | DatasetInspected | Failed
Answer = Compressed | ModelInspected | DatasetInspected | Failed
"""Events after which the child has nothing more to say."""

_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def write_event(event: Event) -> bytes:
    """The event as a line of JSON."""
    return event.model_dump_json().encode() + b"\n"


def read_event(line: bytes) -> Event:
    """Parse a line that a child wrote.

    Raises:
        ProtocolViolation: It is no event, or holds what JSON or a database cannot (NaN, infinity, lone surrogates,
            the character U+0000).
    """
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolViolation(f"a message of more than {MAX_LINE_BYTES} bytes")
    try:
        value = json.loads(line)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        # A backslash of the text itself is written as two.
        if "\\u0000" in text.replace("\\\\", ""):
            raise ProtocolViolation("a message with the character U+0000")
        return _EVENTS.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolViolation(f"a message that is not valid: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation(f"a message that is not JSON: {error}") from error
