"""Another network whose outputs a trained one follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import fx

from compression.context import Context
from compression.graph.to_torch import to_torch
from compression.training.dataset import TrainingBatch, TrainingSet, in_order
from compression.training.objectives import outputs_of

_AT_ONCE = 256
# Outputs beyond this many bytes are computed again in every epoch instead of being kept.
_MAX_KEPT_BYTES = 1 << 29


class Teacher:
    """Gives batches the outputs that a network has for them.

    Args:
        model: The network, as ONNX; it takes the same inputs as the one that is trained.
        device: `cpu` or `cuda`.

    Attributes:
        module: The same, imported; nothing in it learns.
    """

    def __init__(self, model: onnx.ModelProto, device: str) -> None:
        self.module: fx.GraphModule = to_torch(model, device=device).requires_grad_(requires_grad=False)
        self._kept: tuple[torch.Tensor, ...] | None = None

    @torch.no_grad()
    def outputs(self, batch: TrainingBatch) -> tuple[torch.Tensor, ...]:
        return outputs_of(self.module, batch)

    def watch(self, samples: TrainingSet, context: Context, batch_size: int | None) -> None:
        """Compute the outputs of all samples once, where they are small enough to be kept.

        Args:
            samples: What is trained on; their inputs must not be changed at random.
            context: Asked for cancellation.
            batch_size: Samples that the network takes at a time, or None where that is open.
        """
        everything = np.arange(len(samples), dtype=np.int64)
        size = batch_size or _AT_ONCE
        found: list[tuple[torch.Tensor, ...]] = []
        for indices in in_order(everything, size):
            context.check_cancelled()
            outputs = self.outputs(samples.batch(indices, context.device))
            if not found and sum(output.nbytes for output in outputs) * len(samples) // len(indices) > _MAX_KEPT_BYTES:
                return
            found.append(tuple(output.cpu() for output in outputs))
        columns: Iterator[tuple[torch.Tensor, ...]] = zip(*found, strict=True)
        self._kept = tuple(torch.cat(column) for column in columns)

    def teach(self, batch: TrainingBatch, indices: npt.NDArray[np.int64]) -> TrainingBatch:
        """The batch with the outputs of this network; `indices` are those of its samples."""
        if self._kept is None:
            return dataclasses.replace(batch, teacher=self.outputs(batch))
        device = batch.inputs[0].device
        rows = torch.from_numpy(indices)
        return dataclasses.replace(batch, teacher=tuple(output[rows].to(device) for output in self._kept))
