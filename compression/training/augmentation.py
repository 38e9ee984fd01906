"""Random changes of training inputs."""

from __future__ import annotations

import torch
from torch.nn import functional

from compression.training.spec import Augmentation


def augment(
    inputs: tuple[torch.Tensor, ...], spec: Augmentation, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Change every input at random; pictures are the float inputs of shape (n, c, h, w).

    Args:
        inputs: One tensor for each input of the model; the first axis is the sample.
        spec: What may change.
        generator: Source of chance, on the CPU.
    """
    return tuple(_augment(values, spec, generator) if values.is_floating_point() else values for values in inputs)


def _augment(values: torch.Tensor, spec: Augmentation, generator: torch.Generator) -> torch.Tensor:
    if values.dim() == 4:
        if spec.flip:
            mirrored = torch.rand(len(values), generator=generator) < 0.5
            values = torch.where(mirrored.to(values.device)[:, None, None, None], values.flip(-1), values)
        if spec.shift:
            values = shifted(values, torch.randint(-spec.shift, spec.shift + 1, (len(values), 2), generator=generator))
    if spec.noise:
        noise = torch.randn(values.shape, generator=generator).to(values.device, values.dtype)
        values = values + spec.noise * noise
    return values


def shifted(pictures: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Each picture moved by its own offset; zeros come in.

    Args:
        pictures: (n, c, h, w).
        offsets: (n, 2) whole pixels down and right; negative ones go up and left.

    >>> shifted(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[0, 1]])).tolist()
    [[[[0.0, 1.0]]]]
    """
    _, channels, height, width = pictures.shape
    reach = int(offsets.abs().max())
    padded = functional.pad(pictures, (reach, reach, reach, reach))
    device = pictures.device
    start = (reach - offsets).to(device)
    rows = start[:, 0, None] + torch.arange(height, device=device)
    columns = start[:, 1, None] + torch.arange(width, device=device)
    sample = torch.arange(len(pictures), device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
