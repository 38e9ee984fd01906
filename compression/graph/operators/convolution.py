"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.padding import pad_same, torch_pads
from compression.graph.operators.registry import operator

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_LAYERS: tuple[type[Any], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_LAYERS: tuple[type[Any], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _spatial_rank(op: OperatorCall, weight: int = 1) -> int:
    rank = op.rank(weight)
    kernel = op.attribute("kernel_shape")
    spatial = len(kernel) if kernel else (rank - 2 if rank is not None else 0)
    if not 1 <= spatial <= 3:
        op.reject(f"{spatial} spatial axes; 1 to 3 are supported")
    return spatial


def _padded(op: OperatorCall, x: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Any:
    """The input with what torch cannot pad by itself padded, and the symmetric padding left for torch."""
    spatial = len(kernel)
    auto_pad = op.attribute("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        extents = [(length - 1) * step + 1 for length, step in zip(kernel, dilation, strict=True)]
        return op.call(pad_same, x, extents, list(stride), auto_pad == "SAME_UPPER", 0.0), [0] * spatial
    pads = op.attribute("pads") if auto_pad == "NOTSET" else None
    pads = pads or [0] * 2 * spatial
    begin, end = pads[:spatial], pads[spatial:]
    if begin == end:
        return x, begin
    return op.call(functional.pad, x, torch_pads(pads)), [0] * spatial


def _kernel(op: OperatorCall, spatial: int, weight: int = 1) -> list[int]:
    kernel = op.attribute("kernel_shape")
    if kernel:
        return list(kernel)
    shape = op.shape(weight)
    if shape is None or any(length is None for length in shape[-spatial:]):
        op.reject("a kernel whose shape is not known at import")
    return [int(length) for length in shape[-spatial:] if length is not None]


@operator("Conv")
def conv(op: OperatorCall) -> Any:
    """`nn.Conv*d`. Asymmetric and SAME padding is a `pad` before a layer without padding."""
    spatial = _spatial_rank(op)
    kernel = _kernel(op, spatial)
    stride = op.attribute("strides", [1] * spatial)
    dilation = op.attribute("dilations", [1] * spatial)
    groups = op.attribute("group", 1)
    x, padding = _padded(op, op.tensor(0), kernel, stride, dilation)
    weight, bias = op.stored(1), op.stored(2)
    if weight is None or (op.has(2) and bias is None):
        function = _CONV[spatial - 1]
        return op.call(function, x, op.tensor(1), op.optional(2), stride, padding, dilation, groups)
    (values,) = op.parameters(weight)
    layer = _LAYERS[spatial - 1](
        values.shape[1] * groups,
        values.shape[0],
        tuple(kernel),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    layer.weight = values
    if bias is not None:
        (layer.bias,) = op.parameters(bias)
    return op.layer(layer, x, named_after=(weight, bias))


def crop(x: torch.Tensor, begin: Sequence[int], end: Sequence[int]) -> torch.Tensor:
    """Cut from both ends of the spatial axes; negative numbers append zeros."""
    pads = [-amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return functional.pad(x, pads)


def crop_to_multiple(x: torch.Tensor, source: torch.Tensor, stride: Sequence[int], upper: bool) -> torch.Tensor:
    """Cut a transposed convolution of `source` to input length x stride, the odd element from the end if `upper`."""
    sizes = [length * step for length, step in zip(source.shape[2:], stride, strict=True)]
    return crop_to(x, sizes, upper)


def crop_to(x: torch.Tensor, sizes: Sequence[int], upper: bool) -> torch.Tensor:
    excess = [have - want for have, want in zip(x.shape[2:], sizes, strict=True)]
    halves = [amount // 2 for amount in excess]
    rest = [amount - half for amount, half in zip(excess, halves, strict=True)]
    return crop(x, halves, rest) if upper else crop(x, rest, halves)


@operator("ConvTranspose")
def conv_transpose(op: OperatorCall) -> Any:
    """`nn.ConvTranspose*d`; what its symmetric padding cannot express is cut off after the layer."""
    spatial = _spatial_rank(op)
    kernel = _kernel(op, spatial)
    stride = op.attribute("strides", [1] * spatial)
    dilation = op.attribute("dilations", [1] * spatial)
    groups = op.attribute("group", 1)
    extra = op.attribute("output_padding", [0] * spatial)
    auto_pad = op.attribute("auto_pad", "NOTSET")
    sizes = op.attribute("output_shape")
    pads = op.attribute("pads", [0] * 2 * spatial)
    begin, end = pads[:spatial], pads[spatial:]
    fixed = auto_pad in ("NOTSET", "VALID") and not sizes
    # torch wants the extra length below stride or dilation, and padding no larger than the kernel.
    in_layer = (
        fixed
        and begin == end
        and all(more < max(step, spread) for more, step, spread in zip(extra, stride, dilation, strict=True))
    )
    padding, output_padding = (begin, extra) if in_layer else ([0] * spatial, [0] * spatial)
    x = op.tensor(0)
    y = _transposed_layer(op, x, kernel, (stride, padding, output_padding, dilation), groups)
    if in_layer:
        return y
    if not fixed:
        upper = auto_pad == "SAME_UPPER"
        wanted = sizes[-spatial:] if sizes else None
        grown = op.call(crop, y, [0] * spatial, [-more for more in extra]) if any(extra) else y
        if wanted:
            return op.call(crop_to, grown, wanted, upper)
        return op.call(crop_to_multiple, grown, x, stride, upper)
    return op.call(crop, y, begin, [amount - more for amount, more in zip(end, extra, strict=True)])


def _transposed_layer(
    op: OperatorCall,
    x: Any,
    kernel: Sequence[int],
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]],
    groups: int,
) -> Any:
    stride, padding, output_padding, dilation = geometry
    spatial = len(kernel)
    weight, bias = op.stored(1), op.stored(2)
    if weight is None or (op.has(2) and bias is None):
        function = _CONV_TRANSPOSE[spatial - 1]
        return op.call(
            function, x, op.tensor(1), op.optional(2), stride, padding, output_padding, groups, list(dilation)
        )
    (values,) = op.parameters(weight)
    layer = _TRANSPOSED_LAYERS[spatial - 1](
        values.shape[0],
        values.shape[1] * groups,
        tuple(kernel),
        stride=tuple(stride),
        padding=tuple(padding),
        output_padding=tuple(output_padding),
        groups=groups,
        bias=bias is not None,
        dilation=tuple(dilation),
        device="meta",
    )
    layer.weight = values
    if bias is not None:
        (layer.bias,) = op.parameters(bias)
    return op.layer(layer, x, named_after=(weight, bias))


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    past: torch.Tensor | None,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depthwise convolution over current and past positions.

    Args:
        x: (batch, channels, length).
        weight: (channels, 1, k).
        bias: (channels,).
        past: (batch, channels, k - 1): the inputs before the first position; zeros when None.
        activation: `silu`, `swish` or `none`.

    Returns:
        The output, like `x`, and the last k - 1 inputs.
    """
    carried = weight.shape[-1] - 1
    if past is None:
        past = x.new_zeros(x.shape[0], x.shape[1], carried)
    joined = torch.cat([past, x], -1)
    y = functional.conv1d(joined, weight, bias, groups=x.shape[1])
    if activation in ("silu", "swish"):
        y = functional.silu(y)
    return y, joined[..., joined.shape[-1] - carried :]


@operator("CausalConvWithState")
def causal_conv_(op: OperatorCall) -> Any:
    results = op.call(
        causal_conv,
        op.tensor(0),
        op.tensor(1),
        op.optional(2),
        op.optional(3),
        op.attribute("activation", "none"),
    )
    return [op.item(results, index) for index in range(op.outputs)]


def deformable_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """Torchvision's deformable convolution; Zhu et al. 2018, "Deformable ConvNets v2"."""
    from torchvision.ops import deform_conv2d  # noqa: PLC0415  # torchvision takes a second to import; few models need it

    result: torch.Tensor = deform_conv2d(x, offset, weight, bias, tuple(stride), tuple(padding), tuple(dilation), mask)
    return result


@operator("DeformConv")
def deform_conv(op: OperatorCall) -> Any:
    if _spatial_rank(op) != 2:
        op.reject("deformable convolution is supported over two spatial axes")
    pads = op.attribute("pads", [0] * 4)
    x = op.tensor(0)
    if pads[:2] != pads[2:]:
        op.reject(f"attribute 'pads' = {pads}: begin and end must be equal")
    stride, dilation = op.attribute("strides", [1, 1]), op.attribute("dilations", [1, 1])
    return op.call(
        deformable_conv, x, op.tensor(1), op.tensor(2), op.optional(3), op.optional(4), stride, pads[:2], dilation
    )
