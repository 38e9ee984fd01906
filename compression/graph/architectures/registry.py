"""From an architecture's description to a module with random weights. Only names that a library lists are built."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, assert_never

import torch
from torch import nn
from torch.nn.modules import module as hooks

from compression.errors import ModelRejected
from compression.graph.architectures.layer_list import LayerList, default_input
from compression.graph.architectures.layers_spec import Layers
from compression.graph.architectures.libraries import quiet, reraise_out_of_memory, sentence
from compression.graph.architectures.spec import Architecture, Input, Timm, Torchvision, Transformers
from compression.graph.limits import Limits

_PICTURE = 224
_BYTES_PER_PARAMETER = 4


def build(
    architecture: Architecture, limits: Limits, given: tuple[Input, ...] | None = None
) -> tuple[nn.Module, tuple[Input, ...]]:
    """Build a module, and say what it takes. Nothing is downloaded.

    Args:
        architecture: What to build.
        limits: Caps on its size.
        given: What the caller says that it takes; None for its usual input.

    Raises:
        ModelRejected: `architecture_unknown` with the nearest names, `architecture_invalid` where the library refuses
            the arguments, `model_too_large` or `input_missing`.
    """
    make, inputs = _maker(architecture)
    # First without memory, where a few arguments could ask for all there is. Some networks compute while they are
    # built, which fails then; what is wrong otherwise shows below.
    try:
        with quiet(), _counted(limits), torch.device("meta"):
            make()
    except ModelRejected:
        raise
    except Exception:  # noqa: BLE001, S110 - see above
        pass
    try:
        with quiet(), _counted(limits):
            module = make()
    except ModelRejected:
        raise
    except Exception as error:  # noqa: BLE001 - libraries raise what they like
        reraise_out_of_memory(error)
        raise ModelRejected(
            "architecture_invalid", f"{_called(architecture)} cannot be built: {sentence(error)}"
        ) from None
    return module.float().eval(), inputs(module) if given is None else given


_Inputs = Callable[[nn.Module], tuple[Input, ...]]


def _maker(architecture: Architecture) -> tuple[Callable[[], nn.Module], _Inputs]:
    match architecture:
        case Torchvision():
            return _torchvision(architecture)
        case Timm():
            return _timm(architecture)
        case Transformers():
            return _transformers(architecture)
        case Layers():
            layers = architecture.layers
            return lambda: LayerList(layers), lambda _: (default_input(layers),)
        case _:
            assert_never(architecture)


def _torchvision(architecture: Torchvision) -> tuple[Callable[[], nn.Module], _Inputs]:
    from torchvision import models  # noqa: PLC0415 - only where it is asked for

    name = _listed(architecture.name, models.list_models(exclude="quantized_*"))
    builder = models.get_model_builder(name)
    # None of the defaults may fetch weights, and that of a detector's backbone does.
    unweighted = {key: None for key in inspect.signature(builder).parameters if key.startswith("weights")}

    def inputs(_: nn.Module) -> tuple[Input, ...]:
        size = _PICTURE
        known: Any = next(iter(models.get_model_weights(builder)), None)
        transforms = getattr(known, "transforms", None)
        crop = getattr(transforms, "keywords", {}).get("crop_size")
        size = crop if isinstance(crop, int) else size
        return (Input(shape=(3, size, size)),)

    return lambda: builder(**unweighted, **architecture.arguments), inputs


def _timm(architecture: Timm) -> tuple[Callable[[], nn.Module], _Inputs]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    timm: Any = import_module("timm")

    name = _listed(architecture.name, timm.list_models())

    def inputs(module: nn.Module) -> tuple[Input, ...]:
        known: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
        channels, height, width = known.get("input_size", (3, _PICTURE, _PICTURE))
        arguments = architecture.arguments
        size = arguments.get("img_size")
        height, width = (size, size) if isinstance(size, int) else (height, width)
        channels = arguments.get("in_chans", channels)
        return (Input(shape=(channels, height, width)),)

    return lambda: timm.create_model(name, pretrained=False, **architecture.arguments), inputs


def _transformers(architecture: Transformers) -> tuple[Callable[[], nn.Module], _Inputs]:
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    transformers: Any = import_module("transformers")
    modeling_auto = import_module("transformers.models.auto.modeling_auto")
    tables = [table for key, table in vars(modeling_auto).items() if key.endswith("MAPPING_NAMES")]
    listed = {one for table in tables for value in table.values() for one in _each(value)}
    kind = getattr(transformers, _listed(architecture.name, listed))

    def make() -> nn.Module:
        config = kind.config_class(**architecture.config)
        config.use_cache = False
        if hasattr(config, "use_pretrained_backbone"):
            config.use_pretrained_backbone = False
        # Other implementations are fetched, or made for devices and sequences that a graph cannot presume.
        module: nn.Module = kind._from_config(config, attn_implementation="eager")  # noqa: SLF001 - as auto classes do
        return module

    def inputs(module: nn.Module) -> tuple[Input, ...]:
        config: Any = module.config
        if getattr(module, "main_input_name", "") == "pixel_values":
            size = getattr(config, "image_size", _PICTURE)
            height, width = size if isinstance(size, list | tuple) else (size, size)
            return (Input(name="pixel_values", shape=(getattr(config, "num_channels", 3), height, width)),)
        names = ("input_ids", "attention_mask")
        taken = inspect.signature(module.forward).parameters
        return tuple(Input(name=name, shape=("sequence",), dtype="int64") for name in names if name in taken)

    return make, inputs


def _each(value: object) -> Iterable[str]:
    return value if isinstance(value, tuple) else (str(value),)


def _listed(full: str, names: Iterable[str]) -> str:
    """The name without its library, if the library has it."""
    library, _, name = full.partition(":")
    known = sorted(names)
    if name in known:
        return name
    raise ModelRejected("architecture_unknown", f"{library} has no architecture '{name}'{_nearest(name, known)}.")


def _nearest(name: str, known: Sequence[str]) -> str:
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    return f"; the nearest are {', '.join(lower[one] for one in near)}" if near else f"; it has {len(known)} others"


@contextmanager
def _counted(limits: Limits) -> Iterator[None]:
    """Stop the building of a module as soon as it has more layers or parameters than are accepted."""
    largest = limits.max_bytes // _BYTES_PER_PARAMETER
    elements = modules = 0

    def count_tensor(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal elements
        elements += 0 if tensor is None else tensor.numel()
        if elements > largest:
            raise _too_large(f"more than {largest} parameters")

    def count_module(_module: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > limits.max_modules:
            raise _too_large(f"more than {limits.max_modules} layers")

    handles = [
        hooks.register_module_parameter_registration_hook(count_tensor),
        hooks.register_module_buffer_registration_hook(count_tensor),
        hooks.register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _too_large(what: str) -> ModelRejected:
    return ModelRejected("model_too_large", f"The architecture has {what}; no more are accepted.")


def _called(architecture: Architecture) -> str:
    match architecture:
        case Layers():
            return "The list of layers"
        case Transformers():
            return architecture.name
        case _:
            given = ", ".join(f"{key}={value!r}" for key, value in architecture.arguments.items())
            return f"{architecture.name}({given})"
