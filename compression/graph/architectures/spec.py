"""What a caller says about a `state_dict`: which architecture it belongs to, and what that takes as input.

Importing this module never imports torch, onnx or numpy. Whether a name exists is known where the weights are loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from compression._spec_base import Spec
from compression.graph.architectures.layers_spec import Layers

MODEL = "model.onnx"
"""The graph that is made."""
COMPANION = "state_dict.safetensors"
"""Beside it, what else the `state_dict` holds (`companion`)."""

_KEY = re.compile(r"[a-z][A-Za-z0-9_]{0,63}")
# Whatever fetches weights or code, or names a place to fetch them from. Weights come from the upload alone.
_FETCHING = re.compile(
    r"(?<!init_)weights|pretrained|checkpoint_path|cache_dir|hub|(^|_)urls?($|_)|^path$|(?<!drop)_path$|files?($|_)|revision|"
    r"auto_map|remote_code|^progress$|attn_implementation|quantization_config|torchscript|^token$"
)
_LARGEST = 1_000_000
_MAX_TEXT = 100
_MAX_CONFIG_BYTES = 16_384
_MAX_DEPTH = 6
_MAX_INPUTS = 16

Axis = Annotated[int, Field(ge=1, le=65_536)] | Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,31}$")]


class Input(Spec):
    """A tensor that the network takes, as it is for one sample."""

    shape: tuple[Axis, ...] = Field(max_length=7)
    """Lengths of the axes without the batch axis, which is added in front and takes any length. A name instead of a
    length leaves the axis open, such as `sequence`; the same name is the same length everywhere."""
    dtype: Literal["float32", "int64", "int32"] = "float32"
    """Element type."""
    name: str | None = Field(default=None, pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    """Name in the ONNX graph, `input` by default. A network that takes several needs the names of its arguments, such
    as `input_ids`."""

    @field_validator("shape")
    @classmethod
    def _moderate(cls, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if math.prod(axis for axis in shape if isinstance(axis, int)) > 2**28:
            msg = "a sample may have 268435456 elements at most"
            raise ValueError(msg)
        if "batch" in shape:
            msg = "leave the batch axis out: it is added in front"
            raise ValueError(msg)
        return shape


class _Library(Spec):
    """An architecture by its name in a library, with the arguments of the function that builds it."""

    arguments: dict[str, JsonValue] = Field(
        default={},
        max_length=32,
        json_schema_extra={"additionalProperties": {"type": ["number", "string", "boolean", "null"]}},
    )
    """Keyword arguments of the architecture, such as `num_classes`: numbers, texts, true, false or null. None that
    would fetch weights or code."""

    @field_validator("arguments")
    @classmethod
    def _harmless(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key, value in arguments.items():
            _check_key(key)
            if isinstance(value, list | dict):
                msg = f"'{key}' must be a number, a text, true, false or null"
                raise ValueError(msg)  # noqa: TRY004 - pydantic takes ValueError only
            _check_scalar(key, value)
        return arguments


class Torchvision(_Library):
    """An architecture of torchvision."""

    name: str = Field(pattern="^torchvision:[A-Za-z0-9_]{1,64}$", examples=["torchvision:resnet18"])
    """`torchvision:` and a name of `torchvision.models.list_models()`."""


class Timm(_Library):
    """An architecture of timm (PyTorch Image Models)."""

    name: str = Field(pattern="^timm:[A-Za-z0-9_]{1,64}$", examples=["timm:mobilenetv3_small_100"])
    """`timm:` and a name of `timm.list_models()`."""


class Transformers(Spec):
    """A class of Hugging Face's transformers with its configuration."""

    name: str = Field(
        pattern="^transformers:[A-Za-z0-9_]{1,64}$", examples=["transformers:BertForSequenceClassification"]
    )
    """`transformers:` and a model class that the library's auto classes know."""
    config: dict[str, JsonValue] = Field(default={}, max_length=256, json_schema_extra={"additionalProperties": True})
    """The fields of its `config.json`; what is not given takes the class's default."""

    @field_validator("config")
    @classmethod
    def _harmless(cls, config: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if len(json.dumps(config)) > _MAX_CONFIG_BYTES:
            msg = f"may have {_MAX_CONFIG_BYTES} bytes at most as JSON"
            raise ValueError(msg)
        for key, value in config.items():
            _check_key(key)
            for inner in _scalars(key, value):
                _check_scalar(key, inner)
        return config


def _tag(value: object) -> str | None:
    """What tells the members of `Architecture` apart: the library in the name, or that there are layers."""

    def field(name: str) -> object:
        return value.get(name) if isinstance(value, dict) else getattr(value, name, None)

    name = field("name")
    if isinstance(name, str):
        return name.partition(":")[0]
    return "layers" if field("layers") is not None else None


Architecture = Annotated[
    Annotated[Torchvision, Tag("torchvision")]
    | Annotated[Timm, Tag("timm")]
    | Annotated[Transformers, Tag("transformers")]
    | Annotated[Layers, Tag("layers")],
    Discriminator(
        _tag,
        custom_error_type="unknown_architecture",
        custom_error_message='give a name such as {{"name": "torchvision:resnet18"}} '
        "(torchvision:, timm: or transformers:), or a list of layers",
    ),
]
"""The network that a `state_dict` belongs to."""


Inputs = Annotated[
    Annotated[Input, Tag("one")] | Annotated[tuple[Input, ...], Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]
"""What a network takes: one tensor or several."""


def check_inputs(inputs: Input | tuple[Input, ...] | None) -> None:
    """Raise ValueError unless several inputs can be told apart by their names."""
    if not isinstance(inputs, tuple):
        return
    names = [one.name for one in inputs]
    if not 1 <= len(inputs) <= _MAX_INPUTS:
        msg = f"name 1 to {_MAX_INPUTS} inputs"
        raise ValueError(msg)
    if len(inputs) > 1 and (None in names or len(set(names)) < len(names)):
        msg = "several inputs need names that differ"
        raise ValueError(msg)


class ModelSource(Spec):
    """Everything that turns uploaded weights into a graph."""

    architecture: Architecture
    input: Inputs | None = None
    """What the network takes; None is the architecture's usual input."""

    @property
    def inputs(self) -> tuple[Input, ...] | None:
        """The inputs that the caller gave, as a tuple."""
        return (self.input,) if isinstance(self.input, Input) else self.input

    @model_validator(mode="after")
    def _inputs_are_told_apart(self) -> Self:
        check_inputs(self.input)
        return self


def _check_key(key: str) -> None:
    if _KEY.fullmatch(key) is None:
        msg = f"{key[:80]!r} is no name of an argument"
        raise ValueError(msg)
    if _FETCHING.search(key):
        msg = f"'{key}' is not accepted: weights come from the upload, and nothing is fetched or read on its word"
        raise ValueError(msg)


def _check_scalar(key: str, value: JsonValue) -> None:
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        msg = f"'{key}' may have {_MAX_TEXT} characters at most"
        raise ValueError(msg)
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:
        msg = f"'{key}' must lie between -{_LARGEST} and {_LARGEST}"
        raise ValueError(msg)


def _scalars(key: str, value: JsonValue, depth: int = 0) -> Iterator[JsonValue]:
    if depth > _MAX_DEPTH:
        msg = f"'{key}' is nested more than {_MAX_DEPTH} levels deep"
        raise ValueError(msg)
    if isinstance(value, dict):
        for name, inner in value.items():
            # Such as id2label, whose keys are numbers.
            if _FETCHING.search(name):
                _check_key(name)
            yield from _scalars(key, inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(key, inner, depth + 1)
    else:
        yield value
