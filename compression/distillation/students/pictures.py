"""Published light networks for pictures, as tables of their blocks."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from compression.distillation.students.blocks import ConvNorm, Fire, InvertedResidual, ShuffleUnit, rounded, strides


class Vector(nn.Sequential):
    """Layers that end in a vector for each sample.

    Attributes:
        features: Its length.
    """

    def __init__(self, layers: list[nn.Module], features: int) -> None:
        super().__init__(*layers)
        self.features = features


class _Row(NamedTuple):
    """A block of inverted residuals: kernel, channels inside and out, squeeze-and-excitation, hard swish, stride."""

    kernel: int
    inner: int
    outputs: int
    squeeze: bool
    swish: bool
    stride: int


# Howard et al. 2019, tables 1 and 2.
_V3_LARGE = (
    _Row(3, 16, 16, squeeze=False, swish=False, stride=1),
    _Row(3, 64, 24, squeeze=False, swish=False, stride=2),
    _Row(3, 72, 24, squeeze=False, swish=False, stride=1),
    _Row(5, 72, 40, squeeze=True, swish=False, stride=2),
    _Row(5, 120, 40, squeeze=True, swish=False, stride=1),
    _Row(5, 120, 40, squeeze=True, swish=False, stride=1),
    _Row(3, 240, 80, squeeze=False, swish=True, stride=2),
    _Row(3, 200, 80, squeeze=False, swish=True, stride=1),
    _Row(3, 184, 80, squeeze=False, swish=True, stride=1),
    _Row(3, 184, 80, squeeze=False, swish=True, stride=1),
    _Row(3, 480, 112, squeeze=True, swish=True, stride=1),
    _Row(3, 672, 112, squeeze=True, swish=True, stride=1),
    _Row(5, 672, 160, squeeze=True, swish=True, stride=2),
    _Row(5, 960, 160, squeeze=True, swish=True, stride=1),
    _Row(5, 960, 160, squeeze=True, swish=True, stride=1),
)
_V3_SMALL = (
    _Row(3, 16, 16, squeeze=True, swish=False, stride=2),
    _Row(3, 72, 24, squeeze=False, swish=False, stride=2),
    _Row(3, 88, 24, squeeze=False, swish=False, stride=1),
    _Row(5, 96, 40, squeeze=True, swish=True, stride=2),
    _Row(5, 240, 40, squeeze=True, swish=True, stride=1),
    _Row(5, 240, 40, squeeze=True, swish=True, stride=1),
    _Row(5, 120, 48, squeeze=True, swish=True, stride=1),
    _Row(5, 144, 48, squeeze=True, swish=True, stride=1),
    _Row(5, 288, 96, squeeze=True, swish=True, stride=2),
    _Row(5, 576, 96, squeeze=True, swish=True, stride=1),
    _Row(5, 576, 96, squeeze=True, swish=True, stride=1),
)
# Expansion, channels, repeats, stride of the first, kernel. Sandler et al. 2018, table 2.
_V2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
# Tan and Le 2019, table 1, with ReLU6 and without squeeze-and-excitation.
_LITE0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def mobilenet_v2(channels: int, side: int, width: float) -> Vector:
    """MobileNetV2; the last convolution does not become narrower than published (Sandler et al. 2018, section 6.1)."""
    return _by_expansion(channels, side, _V2, width, stem=rounded(32 * width), last=rounded(1280 * max(1.0, width)))


def efficientnet_lite0(channels: int, side: int, width: float) -> Vector:
    """EfficientNet-Lite0; first and last convolution stay as they are at any width, as in its larger versions."""
    return _by_expansion(channels, side, _LITE0, width, stem=32, last=1280)


def _by_expansion(
    channels: int, side: int, table: tuple[tuple[int, int, int, int, int], ...], width: float, *, stem: int, last: int
) -> Vector:
    stride = iter(strides(5, side))
    layers: list[nn.Module] = [ConvNorm(channels, stem, 3, next(stride), activation=nn.ReLU6)]
    inputs = stem
    for expansion, base, repeats, first, kernel in table:
        outputs = rounded(base * width)
        for repeat in range(repeats):
            step = next(stride) if first == 2 and repeat == 0 else 1
            layers.append(
                InvertedResidual(inputs, inputs * expansion, outputs, kernel, step, squeeze=False, activation=nn.ReLU6)
            )
            inputs = outputs
    layers.append(ConvNorm(inputs, last, 1, activation=nn.ReLU6))
    return _pooled(layers, last)


def mobilenet_v3_small(channels: int, side: int, width: float) -> Vector:
    return _v3(channels, side, _V3_SMALL, width, last=1024)


def mobilenet_v3_large(channels: int, side: int, width: float) -> Vector:
    return _v3(channels, side, _V3_LARGE, width, last=1280)


def _v3(channels: int, side: int, table: tuple[_Row, ...], width: float, *, last: int) -> Vector:
    stride = iter(strides(5, side))
    inputs = rounded(16 * width)
    layers: list[nn.Module] = [ConvNorm(channels, inputs, 3, next(stride), activation=nn.Hardswish)]
    for row in table:
        outputs = rounded(row.outputs * width)
        layers.append(
            InvertedResidual(
                inputs,
                rounded(row.inner * width),
                outputs,
                row.kernel,
                next(stride) if row.stride == 2 else 1,
                squeeze=row.squeeze,
                activation=nn.Hardswish if row.swish else nn.ReLU,
            )
        )
        inputs = outputs
    layers.append(ConvNorm(inputs, 6 * inputs, 1, activation=nn.Hardswish))
    features = rounded(last * width)
    # The last dense layer comes after pooling, where it is cheap (Howard et al. 2019, section 5.1).
    dense = [nn.Linear(6 * inputs, features), nn.Hardswish()]
    return Vector([*_pooled(layers, 6 * inputs), *dense], features)


def squeezenet(channels: int, side: int, width: float) -> Vector:
    """SqueezeNet 1.1; its last convolution is the head."""
    stride = iter(strides(4, side))

    def wide(base: int) -> int:
        return rounded(base * width)

    stem = nn.Conv2d(channels, wide(64), 3, next(stride), padding=1)
    layers: list[nn.Module] = [stem, nn.ReLU()]
    inputs = wide(64)
    for pooled, squeezed, expanded in (
        (True, 16, 64),
        (False, 16, 64),
        (True, 32, 128),
        (False, 32, 128),
        (True, 48, 192),
        (False, 48, 192),
        (False, 64, 256),
        (False, 64, 256),
    ):
        if pooled and next(stride) == 2:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        layers.append(Fire(inputs, wide(squeezed), wide(expanded)))
        inputs = 2 * wide(expanded)
    for layer in nn.Sequential(*layers).modules():
        if isinstance(layer, nn.Conv2d):
            # Without batch norms the scale of activations hangs on the first weights (He et al. 2015).
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return _pooled(layers, inputs)


def shufflenet_v2(channels: int, side: int, width: float) -> Vector:
    """ShuffleNetV2; stages have 2·round(58·width) channels and twice and four times as many."""
    stride = iter(strides(5, side))
    inputs = 24
    layers: list[nn.Module] = [ConvNorm(channels, inputs, 3, next(stride))]
    if next(stride) == 2:
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    for repeats, factor in ((4, 1), (8, 2), (4, 4)):
        outputs = 2 * factor * round(58 * width)
        layers.append(ShuffleUnit(inputs, outputs, next(stride), split=False))
        layers.extend(ShuffleUnit(outputs, outputs, 1, split=True) for _ in range(repeats - 1))
        inputs = outputs
    last = 1024 if width <= 1.5 else 2048
    layers.append(ConvNorm(inputs, last, 1))
    return _pooled(layers, last)


def _pooled(layers: list[nn.Module], features: int) -> Vector:
    return Vector([*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()], features)
