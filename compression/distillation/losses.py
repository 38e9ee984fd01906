"""What a student is told to minimize, as pure functions of two tensors."""

from __future__ import annotations

import torch
from torch.nn import functional

_SMALLEST = 1e-12


def soft_binary_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean divergence of softened yes/no distributions, one for each output, times temperature squared.

    What `soft_cross_entropy` (Hinton et al. 2015, section 2) is to a softmax, this is to a sigmoid.

    Args:
        student: Logits, any shape.
        teacher: Logits of the same shape.
        temperature: Above 0.
    """
    wanted = torch.sigmoid(teacher / temperature)
    cross = functional.binary_cross_entropy_with_logits(student / temperature, wanted)
    own = functional.binary_cross_entropy_with_logits(teacher / temperature, wanted)
    return (cross - own) * temperature**2


def relative_squared_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error in units of the teacher's mean square: 1 where the student says 0, whatever the layer's scale.

    FitNets' hint loss (Romero et al. 2015, equation 3) is half the squared error; the unit makes one weight serve all
    layers.

    Args:
        student: Activations that a projection has brought into the teacher's shape.
        teacher: Activations of the same shape.

    >>> relative_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]])).item()
    0.125
    """
    return functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(_SMALLEST)


def attention_map(activations: torch.Tensor) -> torch.Tensor:
    """Where activations are large: their sum of squares at each position, with norm 1 over the positions.

    Args:
        activations: (n, channels, …) with the positions behind.

    Returns:
        (n, positions), Q/‖Q‖ of Zagoruyko and Komodakis (2017, section 3.1, F² with p = 2).

    >>> attention_map(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]))
    tensor([[0.9138, 0.4061]])
    """
    return functional.normalize(activations.square().sum(1).flatten(1), dim=1)


def attention_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Half the squared distance of two attention maps, mean over samples: 0 where equal, 1 where nothing is shared.

    Zagoruyko and Komodakis 2017, equation 2, squared as in the authors' code.

    Args:
        student: (n, channels, …).
        teacher: (n, other channels, …) with the same positions.
    """
    return (attention_map(student) - attention_map(teacher)).square().sum(1).mean() / 2


def distances(embeddings: torch.Tensor) -> torch.Tensor:
    """Distance of each pair of samples, in units of their mean (Park et al. 2019, equations 3 and 4).

    Args:
        embeddings: (n, features).

    Returns:
        (n, n) with zeros on the diagonal.
    """
    # By differences: the shorter way by products loses the digits of small distances. Its slope at 0 is taken as 0.
    found = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    return found / (found.sum() / (found > 0).sum().clamp_min(1)).clamp_min(_SMALLEST)


def angles(embeddings: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle that two samples make at a third (Park et al. 2019, equations 6 and 7).

    Args:
        embeddings: (n, features).

    Returns:
        (n, n, n): the first axis is the sample at the angle's vertex; 0 where two of the three coincide.
    """
    # By products instead of differences: n³ numbers in place of n² vectors. Centred, so that few digits cancel.
    centred = embeddings - embeddings.mean(0)
    products = centred @ centred.T
    own = products.diagonal()
    dots = products[None] - products[:, :, None] - products[:, None, :] + own[:, None, None]
    lengths = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    both = lengths[:, :, None] * lengths[:, None, :]
    apart = both > _SMALLEST
    return (dots / torch.where(apart, both, torch.ones_like(both)) * apart).clamp(-1.0, 1.0)


def relation_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber loss between the distances of all pairs (Park et al. 2019, equation 5), mean over pairs.

    Args:
        student: (n, features).
        teacher: (n, other features).
    """
    return functional.smooth_l1_loss(distances(student), distances(teacher))


def relation_angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Huber loss between the angles of all triples (Park et al. 2019, equation 8), mean over triples.

    Args:
        student: (n, features).
        teacher: (n, other features).
    """
    return functional.smooth_l1_loss(angles(student), angles(teacher))
