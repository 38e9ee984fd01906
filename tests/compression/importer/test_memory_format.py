"""The memory format of imported convolutions: chosen by shape, and without effect on what is computed or written."""

from __future__ import annotations

import numpy as np
import torch
from onnx import numpy_helper
from torch import nn

from compression.graph.memory_format import faster_format, lay_out
from compression.graph.to_torch import to_torch
from compression.graph.write_back import write_back
from tests.compression import models


def test_narrow_convolutions_train_channels_last_and_wide_ones_do_not() -> None:
    narrow = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 512, 1), nn.Conv2d(512, 512, 3, groups=512))
    wide = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3))
    assert faster_format(narrow) is torch.channels_last
    assert faster_format(wide) is torch.contiguous_format
    assert faster_format(nn.Linear(4, 4)) is torch.contiguous_format


def test_the_format_changes_neither_parameters_nor_results() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    x = torch.randn(2, 3, 8, 8)
    before, parameters = net(x), list(net.parameters())
    lay_out(net)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    torch.testing.assert_close(net(x), before)


def test_pictures_of_one_channel_pass_through_channels_last_too() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 1, 8, 8)
    before = net(x)
    lay_out(net)
    for layer in net:
        layer.register_forward_hook(
            lambda _, __, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    seen: list[bool] = []
    torch.testing.assert_close(net(x), before)
    assert seen == [True, True, True]


def test_values_in_channels_last_are_written_back_in_the_order_of_the_graph() -> None:
    model = models.cnn()
    module = to_torch(model)
    layer = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.weight.mul_(2)
    wanted = layer.weight.detach().numpy()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in write_back(module, model).graph.initializer}
    assert any(values.shape == wanted.shape and np.array_equal(values, wanted) for values in stored.values())
