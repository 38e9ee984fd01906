"""What a training needs of memory, said when it could not be had."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable

import torch
from torch import nn

from compression import gpu
from compression.errors import StepFailed
from compression.training.dataset import TrainingBatch
from compression.training.objectives import Objective
from compression.training.spec import Training

_MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2}
_GIB = 2**30
# Of the limit, what a training may hope to fill: libraries, samples and fragments take the rest.
_USABLE = 0.8


def is_allocation_failure(error: BaseException) -> bool:
    """Whether torch or Python could not get memory, for which torch has no class of its own on a CPU."""
    if isinstance(error, MemoryError) or is_of_gpu(error):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def is_of_gpu(error: BaseException) -> bool:
    """Whether an allocation failure is one of a GPU's memory; the machine's may run out beside a GPU too."""
    return isinstance(error, torch.OutOfMemoryError) or gpu.says_out_of_memory(str(error))


def weight_bytes(trained: Iterable[nn.Parameter], spec: Training) -> int:
    """Bytes that no batch changes: values, gradients, the optimizer's moments, and the best epoch's values."""
    return sum(parameter.nbytes for parameter in trained) * (3 + _MOMENTS[spec.optimizer])


def activation_bytes(module: nn.Module, objective: Objective, batch: TrainingBatch) -> int:
    """Bytes that the backward pass of a batch finds kept, beside the parameters.

    Each storage counts once, however many layers keep it.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = objective.loss(module, batch)
    del loss  # until here nothing is freed, so that no address can stand for two storages
    return sum(kept.values())


def limit_bytes(device: str) -> int:
    """Bytes that this process may use on a device: the address space allowed to it, at most the machine's memory; or
    the memory of the GPU.
    """
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[1])
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return there if allowed == resource.RLIM_INFINITY else min(allowed, there)


def out_of_memory(fixed: int, each: int | None, batch_size: int, limit: int, *, device: str = "cpu") -> StepFailed:
    """The error with the estimate, the limit, and the batch size that would fit.

    Args:
        fixed: What `weight_bytes` says.
        each: Bytes of one sample's activations; None where even that could not be found out.
        batch_size: Samples in a step.
        limit: What `limit_bytes` says.
        device: Whose memory it is: `cpu`, else a GPU, which has a code of its own.
    """
    where = ("the limit is", "machine") if device == "cpu" else ("the GPU has", "GPU")
    code = "out_of_memory" if device == "cpu" else gpu.OUT_OF_MEMORY
    allowed = f"and {where[0]} {limit / _GIB:.2f} GiB"
    cure = f"Use an optimizer with fewer moments, such as sgd, or a {where[1]} with more memory."
    if each is None:
        need = f"Training needs {fixed / _GIB:.2f} GiB for weights, gradients and moments alone, {allowed}."
        return StepFailed(code, f"{need} {cure}")
    need = (
        f"Training with batches of {batch_size} needs about {(fixed + batch_size * each) / _GIB:.2f} GiB "
        f"({fixed / _GIB:.2f} for weights, gradients and moments, {each / 2**20:.2f} MiB of activations a sample) "
        f"beside libraries and data, {allowed}."
    )
    fits = int((_USABLE * limit - fixed) // max(each, 1))
    if 1 <= fits < batch_size:
        cure = f"Lower training.batch_size to {fits} or less."
    return StepFailed(code, f"{need} {cure}")
