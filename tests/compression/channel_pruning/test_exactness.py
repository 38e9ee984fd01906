"""Pruned graphs against the originals with the same channels zeroed by hand, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from torch import nn

from compression.pruning.channels import step
from compression.pruning.channels.engine import analyse
from compression.pruning.channels.groups import plan
from tests.compression import models
from tests.compression.channel_pruning import networks
from tests.compression.channel_pruning.oracle import assert_exact
from tests.compression.models import weights_of


def shapes(model):
    return {name: value.shape for name, value in weights_of(model).items()}


@pytest.mark.parametrize("build", [models.mlp, models.cnn])
@pytest.mark.parametrize(
    "fields", [{"amount": 0.5}, {"amount": 0.3, "round_to": 4}, {"amount": 0.4, "scope": "global"}]
)
def test_layers_in_a_row(build, fields):
    assert_exact(build(), **fields)


@pytest.mark.parametrize(
    ("name", "size", "amount"),
    [
        ("resnet18", 32, 0.5),
        ("mobilenet_v2", 32, 0.3),
        ("mobilenet_v3_small", 32, 0.3),
        ("shufflenet_v2_x0_5", 32, 0.3),
        ("squeezenet1_1", 48, 0.3),
    ],
)
def test_torchvision_networks(name, size, amount):
    """Residuals, depthwise convolutions, squeeze and excite, channel shuffles, concatenations."""
    assert_exact(networks.export(networks.torchvision_model(name), 3, size, size), amount=amount)


def test_dense_connections():
    from torchvision.models import DenseNet

    network = DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16, num_classes=10)
    assert_exact(networks.export(network, 3, 32, 32), amount=0.4)


def test_whole_groups_of_wide_grouped_convolutions():
    network = networks.torchvision_model("resnext50_32x4d")
    pruned = assert_exact(networks.export(nn.Sequential(*list(network.children())[:5]), 3, 16, 16), amount=0.5)
    groups = [a.i for node in pruned.graph.node for a in node.attribute if a.name == "group"]
    assert 16 in groups  # half of 32


def test_channel_shuffle_between_grouped_convolutions():
    assert_exact(networks.export(networks.Shuffled(), 3, 8, 8), amount=0.4)


def test_heads_and_hidden_neurons_of_a_transformer():
    """Channels that layer norms average over stay, since zeros would count in the average."""
    model = networks.export(networks.VisionTransformer(), 3, 16, 16)
    assert_exact(model, amount=0.5, include=("*qkv*", "*mlp.0*", "*mlp/mlp.0*"))


def test_heads_go_as_a_whole():
    model = networks.export(networks.VisionTransformer(), 3, 16, 16)
    pruned = assert_exact(model, amount=0.5, include=("*qkv*",))
    before, after = shapes(model), shapes(pruned)
    projections = [name for name in before if before[name] == (24, 72)]
    assert len(projections) == 2
    assert all(after[name] == (24, 36) for name in projections)  # two of four heads of six channels, three times


def test_windows_with_relative_positions():
    model = networks.export(networks.Swin(), 3, 32, 32)
    assert_exact(model, amount=0.5, include=("*attn/MatMul", "*mlp.0/MatMul"))


def test_rows_of_a_computed_table():
    """A layer over a table of positions, whose rows are picked: as the second Swin biases its heads."""
    rng = np.random.default_rng(0)
    weights = {
        "table": models.weight(rng, 9, 3),
        "w": models.weight(rng, 3, 8),
        "v": models.weight(rng, 4, 8),
        "head": models.weight(rng, 8, 3),
        "places": np.array([[3], [0], [8], [3], [5]], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["table", "w"], ["t"], "positions"),
        helper.make_node("GatherND", ["t", "places"], ["p"], "pick"),
        helper.make_node("MatMul", ["x", "v"], ["f"], "features"),
        helper.make_node("Add", ["f", "p"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "head"], ["y"], "last"),
    ]
    model = models.make_model(nodes, [models.value("x", ["b", 5, 4])], [models.value("y", ["b", 5, 3])], weights)
    # Exporters declare shapes of stored tensors too, and of values that are computed.
    declared = [models.value("w", [3, 8]), models.value("t", [9, 8]), models.value("p", [5, 8])]
    model.graph.value_info.extend(declared)
    pruned = assert_exact(model, amount=0.5)
    assert [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in pruned.graph.value_info] == [
        [3, 4],
        [9, 4],
        [5, 4],
    ]
    assert {name: shapes(pruned)[name] for name in ("w", "v", "head")} == {"w": (3, 4), "v": (4, 4), "head": (4, 3)}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("LSTM", {}),
        ("GRU", {}),
        ("RNN", {}),
        ("LSTM", {"bidirectional": True, "num_layers": 2}),
        ("GRU", {"num_layers": 2}),
    ],
)
def test_recurrent_layers(kind, fields):
    model = networks.export(networks.Recurrent(kind, **fields), 5, 6)
    pruned = assert_exact(model, amount=0.4)
    sizes = [a.i for node in pruned.graph.node for a in node.attribute if a.name == "hidden_size"]
    assert sizes == [6] * fields.get("num_layers", 1)


def test_norms_slopes_and_pixel_shuffle():
    assert_exact(networks.export(networks.Normed(), 3, 8, 8), amount=0.4)


def test_halves_slices_places_and_padding():
    assert_exact(networks.export(networks.Gated(), 3, 4, 4), amount=0.4)


def test_heads_in_the_batch_axis():
    pruned = assert_exact(networks.export(networks.Named(), 5, 12), amount=0.5, include=("*attention*",))
    assert pruned is not None


def test_group_norm_loses_groups_or_as_much_of_each():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(8, 16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    assert_exact(networks.export(network, 3, 8, 8), amount=0.5)


def test_every_output_keeps_its_shape():
    model = models.two_inputs()
    engine = analyse(model, step.RULES)
    assert plan(engine, {"wa": True, "wb": True}).groups == []
