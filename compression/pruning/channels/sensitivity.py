"""How much the loss depends on each channel, measured on training samples. The only part of this package with torch."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from compression.context import Context
from compression.errors import DataRejected, StepFailed
from compression.graph.weights import Array, find_weights
from compression.pruning.channel_spec import PruneChannels
from compression.training.dataset import shuffled
from compression.training.objectives import Supervised
from compression.training.spec import Training
from compression.training.step import TrainingMaterial
from compression.training.trainee import Trainee

_BATCH = 32


def gates(
    model: onnx.ModelProto, spec: PruneChannels, context: Context, material: TrainingMaterial
) -> dict[tuple[str, int], Array]:
    """The loss by gates on the channels of each weight (Molchanov et al. 2019, section 3.1).

    A gate that multiplies all weights of one output or one input by 1 has the sum of weight x gradient as derivative,
    which is what the loss would change by if the gate were closed, to first order. Batches have 32 samples, or as many
    as the model fixes; norms and dropout work as in inference. The loss is cross-entropy against `labels`, or mean
    squared error against `targets`.

    Args:
        model: A complete float model; it is not changed.
        spec: Says how many samples are looked at.
        context: Device, progress from 0 to 0.4, cancellation.
        material: The training dataset, and the seed that mixes its samples.

    Returns:
        By weight name and axis, (batches, length of the axis). Weights on which the first output does not depend are
        absent.

    Raises:
        StepFailed: `operator_not_importable`, `output_not_trainable` or `loss_not_finite`.
        DataRejected: `labels_missing`, or the dataset does not fit.
    """
    trainee = Trainee(model, context.device)
    training = Training(samples=spec.importance_samples)
    samples = material.samples(trainee, training, context)
    if not samples.has_target:
        raise DataRejected(
            "labels_missing",
            "Importance 'taylor' measures the loss: it needs 'labels' or 'targets' in the training dataset.",
        )
    objective = Supervised(training, normalized=trainee.gives_probabilities)
    weights = trainee.parameters_of(find_weights(model))
    size = min(material.feed.fixed_batch or _BATCH, len(samples))
    found: dict[tuple[str, int], list[Array]] = {}
    done = 0
    for indices in shuffled(np.arange(len(samples)), size, np.random.default_rng(material.seed)):
        context.check_cancelled()
        context.progress("pruning", 0.4 * done / len(samples), "measuring how the loss depends on channels")
        trainee.module.zero_grad(set_to_none=True)
        loss = objective.loss(trainee.module, samples.batch(indices, context.device))
        if not bool(torch.isfinite(loss)):
            raise StepFailed(
                "loss_not_finite", f"The loss of samples {done} and up of the training dataset is not finite."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        for weight in weights:
            gradient = weight.gradient()
            if gradient is None:
                continue
            product = (weight.values() * gradient).double()
            # Convolutions have channels along their first two axes, recurrent layers along their last two.
            for axis in range(min(product.dim(), 3)):
                sums = product.movedim(axis, 0).flatten(1).sum(1)
                found.setdefault((weight.weight.name, axis), []).append(sums.numpy())
        done += size
    return {key: np.stack(sums) for key, sums in found.items()}
