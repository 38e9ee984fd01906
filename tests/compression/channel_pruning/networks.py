"""Small networks of every kind whose channels depend on each other, exported by torch with distinct random weights."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional

from compression.graph.load import load_model


def export(module, *shape, opset=17):
    """The module as ONNX with an open batch axis."""
    generator = torch.Generator().manual_seed(0)
    module = module.eval()
    with torch.no_grad():
        for parameter in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            # Norms and biases start equal in torch; every channel is to be told from every other.
            if parameter.dim() == 1 and parameter.numel() > 1:
                parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator) + 0.02)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.randn(2, *shape, generator=generator),),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(buffer.getvalue())
        file.flush()
        return load_model(Path(file.name))


def torchvision_model(name, **fields):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=10, **fields)


class Attention(nn.Module):
    """Pre-norm transformer block over `tokens` of `width`, with fused projections."""

    def __init__(self, width=24, heads=4, hidden=32):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, two blocks, a head."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.positions = nn.Parameter(torch.randn(1, 17, 24))
        self.blocks = nn.Sequential(Attention(), Attention())
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.blocks(x)[:, 0])


class Swin(nn.Module):
    """torchvision's shifted windows with relative position bias, two stages."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torchvision.models.SwinTransformer(
            patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[4, 4], window_size=[4, 4], num_classes=10
        )

    def forward(self, x):
        return self.net(x)


class Shuffled(nn.Module):
    """Two grouped convolutions with a channel shuffle between, as in the first ShuffleNet."""

    def __init__(self, groups=4):
        super().__init__()
        self.groups = groups
        self.first, self.second = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 32, 1, groups=groups)
        self.third, self.head = nn.Conv2d(32, 24, 1, groups=2), nn.Linear(24, 10)

    def forward(self, x):
        x = functional.relu(self.second(functional.relu(self.first(x))))
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2)
        x = self.third(x.reshape(batch, channels, height, width))
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """A recurrent layer over steps, or two directions of it twice, then a Linear."""

    def __init__(self, kind, **fields):
        super().__init__()
        self.layer = getattr(nn, kind)(6, 10, batch_first=True, **fields)
        self.head = nn.Linear(20 if fields.get("bidirectional") else 10, 4)

    def forward(self, x):
        return self.head(self.layer(x)[0])


class Normed(nn.Module):
    """Convolutions with group norms, a pixel shuffle, a transposed convolution and a PReLU with its own slopes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True)
        self.slopes, self.second = nn.PReLU(16), nn.Conv2d(16, 32, 3, padding=1)
        self.up, self.third = nn.PixelShuffle(2), nn.ConvTranspose2d(8, 12, 2, 2)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = functional.relu(self.second(self.slopes(self.norm(self.first(x)))))
        return self.last(functional.relu(self.third(self.up(x))))


class Gated(nn.Module):
    """Halves of one layer that gate each other, slices at fixed places, and channels added by padding."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(18, 16, 1)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x):
        a, b = self.first(x).chunk(2, 1)
        x = a.tanh() * b.sigmoid()
        x = functional.pad(x, (0, 0, 0, 0, 2, 4))
        x = self.second(x)
        x = torch.cat([x[:, 4:], x[:, :4]], 1)[:, [3, 1, 2, 0, 7, 6, 5, 4, 15, 14, 13, 12, 11, 10, 9, 8]]
        return self.head(functional.avg_pool2d(x, 2).flatten(1))


class Named(nn.Module):
    """torch's own multi-head attention, whose heads are folded into the batch axis."""

    def __init__(self):
        super().__init__()
        self.before, self.attention = nn.Linear(12, 24), nn.MultiheadAttention(24, 4, batch_first=True)
        self.after = nn.Linear(24, 5)

    def forward(self, x):
        x = self.before(x)
        return self.after(self.attention(x, x, x, need_weights=False)[0])
