"""From a step's spec to the function that applies it: the one place that knows them all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import onnx

from compression.clustering.step import cluster
from compression.coding.step import encode_model
from compression.context import Context
from compression.data.feed import ModelFeed
from compression.errors import StepFailed
from compression.factorization.step import factorize
from compression.pruning.channels.step import prune_channels
from compression.pruning.step import prune
from compression.quantization.step import quantize
from compression.spec import (
    Cluster,
    Distill,
    Encode,
    Factorize,
    Finetune,
    Prune,
    PruneChannels,
    QuantizeAware,
    QuantizeBfloat16,
    QuantizeDynamic,
    QuantizeFloat16,
    QuantizeStatic,
    QuantizeWeightOnly,
    Step,
)

if TYPE_CHECKING:
    from compression.training.step import TrainingMaterial


@dataclass(frozen=True)
class Material:
    """What steps may use beside the model.

    Attributes:
        feeds: Datasets by role, as the model wants them. What the step's spec says it needs is there.
        original: Gives the model as it was uploaded.
        seed: The run's seed.
        key: The step's key (see `compression.cache`).
        student: The second uploaded model; there when the step's spec needs it.
    """

    feeds: Mapping[str, ModelFeed]
    original: Callable[[], onnx.ModelProto]
    seed: int
    key: str
    student: onnx.ModelProto | None = None

    def training(self, context: Context) -> TrainingMaterial:
        """The same for a step that trains, in a process where torch computes with the run's threads.

        Raises:
            StepFailed: `torch_missing`.
        """
        if importlib.util.find_spec("torch") is None:
            raise StepFailed(
                "torch_missing", "Steps that train need torch, which this worker lacks; install 'levity[train]'."
            )
        import torch  # noqa: PLC0415 - see `apply`

        from compression.training.step import TrainingMaterial  # noqa: PLC0415

        if context.threads:
            torch.set_num_threads(context.threads)
        return TrainingMaterial(self.feeds["training"], self.original, self.seed, self.key, self.student)


def apply(  # noqa: C901, PLR0911, PLR0912 - one case for each technique
    step: Step, model: onnx.ModelProto, context: Context, material: Material
) -> tuple[onnx.ModelProto, dict[str, object]]:
    """Apply one step; the result, and what is worth reporting about it.

    Steps that train are imported when one runs: torch takes seconds to load, and a worker may lack it.
    """
    match step:
        case Distill():
            training = material.training(context)
            from compression.distillation.step import distill  # noqa: PLC0415

            return distill(model, step, context, training)
        case Prune() if step.training is not None:
            training = material.training(context)
            from compression.pruning.in_training import prune_in_training  # noqa: PLC0415

            return prune_in_training(model, step, context, training, material.feeds.get("calibration"))
        case Prune():
            return prune(model, step, context, material.feeds.get("calibration"))
        case PruneChannels() if step.importance == "taylor":
            training = material.training(context)
            from compression.pruning.channels.sensitivity import gates  # noqa: PLC0415

            return prune_channels(model, step, context, material.seed, gates(model, step, context, training))
        case PruneChannels():
            return prune_channels(model, step, context, material.seed)
        case Factorize():
            return factorize(model, step, context)
        case Finetune():
            training = material.training(context)
            from compression.training.step import finetune  # noqa: PLC0415

            return finetune(model, step, context, training)
        case Cluster() if step.training is not None:
            training = material.training(context)
            from compression.clustering.tuning import cluster_and_tune  # noqa: PLC0415

            return cluster_and_tune(model, step, context, training)
        case Cluster():
            return cluster(model, step, context, material.seed)
        case QuantizeAware():
            training = material.training(context)
            from compression.quantization.aware.step import quantize_aware  # noqa: PLC0415

            return quantize_aware(model, step, context, training)
        case QuantizeDynamic() | QuantizeStatic() | QuantizeWeightOnly() | QuantizeFloat16() | QuantizeBfloat16():
            return quantize(model, step, context, material.feeds.get("calibration"), material.seed)
        case Encode():
            return encode_model(model, step, context)
        case _:
            assert_never(step)
