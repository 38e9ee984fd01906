"""How each ONNX operator becomes torch: a file per family, found by domain, name and operator set version."""

from compression.graph.operators import (  # noqa: F401  # importing a family registers it
    activation,
    attention,
    cast,
    comparison,
    control_flow,
    convolution,
    elementwise,
    gathering,
    linear,
    losses,
    normalization,
    padding,
    pooling,
    quantization,
    random,
    recurrent,
    reduction,
    resize,
    scattering,
    sets,
    shape,
    signal,
    vision,
)
from compression.graph.operators.registry import find

__all__ = ["find"]
