"""How much goes: amounts, multiples, targets, and what cannot be done."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from compression.context import Context
from compression.errors import Cancelled, StepFailed
from compression.graph.macs import count_macs
from compression.graph.parameters import count_parameters
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels.step import prune_channels
from compression.spec import QuantizeDynamic
from tests.compression import models
from tests.compression.channel_pruning.oracle import prune, run
from tests.compression.quantizing import apply


def channels(details):
    return {group["layers"][0]: group["channels"] for group in details["groups"]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"amount": 0.5}, {"conv1": 4, "conv2": 8}),
        ({"amount": 0.3}, {"conv1": 6, "conv2": 12}),  # 8 x 0.3 = 2.4 and 16 x 0.3 = 4.8, rounded down
        ({"amount": 0.3, "round_to": 4}, {"conv1": 8, "conv2": 12}),
        ({"amount": 0.8, "round_to": 8}, {"conv1": 8, "conv2": 8}),
        ({"amount": 0.9}, {"conv1": 1, "conv2": 2}),
        ({"amount": 0.5, "exclude": ("conv1",)}, {"conv2": 8}),
        ({"amount": 0.5, "include": ("conv1.weight",)}, {"conv1": 4}),
    ],
)
def test_amounts_and_multiples(tmp_path, fields, expected):
    _, details = prune(models.cnn(), tmp_path, **fields)
    assert channels(details) == expected


def test_a_layer_never_becomes_empty(tmp_path):
    _, details = prune(models.cnn(channels=(2, 3)), tmp_path, amount=0.98, max_amount=0.99)
    assert channels(details) == {"conv1": 1, "conv2": 1}


def test_all_together(tmp_path):
    """Channels of the second layer that hardly weigh go first, whichever layer they are in."""
    model = models.cnn()
    weights = models.weights_of(model)
    weak = np.array([1, 4, 5, 11])
    for tensor in model.graph.initializer:
        value = weights[tensor.name].copy()
        if tensor.name == "conv2.weight":
            value[weak] *= 1e-3
        elif tensor.name == "fc.weight":
            value.reshape(10, 16, 16)[:, weak] *= 1e-3
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    pruned, details = prune(model, tmp_path, amount=4 / 24, scope="global")
    assert channels(details) == {"conv1": 8, "conv2": 12}
    np.testing.assert_array_equal(models.weights_of(pruned)["conv2.bias"], np.delete(weights["conv2.bias"], weak))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("share", [0.7, 0.4, 0.1])
def test_targets_are_met_by_little(tmp_path, scope, share):
    model = models.cnn(channels=(32, 64))
    pruned, _ = prune(model, tmp_path, target_macs=share, scope=scope)
    assert share - 0.06 < count_macs(pruned) / count_macs(model) <= share
    pruned, _ = prune(model, tmp_path, target_parameters=share, scope=scope)
    before, after = count_parameters(model).elements, count_parameters(pruned).elements
    assert share - 0.06 < after / before <= share


def test_targets_with_multiples(tmp_path):
    pruned, details = prune(models.cnn(channels=(32, 64)), tmp_path, target_macs=0.5, round_to=8)
    assert all(count % 8 == 0 for count in channels(details).values())
    assert count_macs(pruned) <= 0.5 * count_macs(models.cnn(channels=(32, 64)))


def test_same_input_same_bytes(tmp_path):
    fields = {"amount": 0.4, "importance": "random", "seed": 5}
    first, second = (prune(models.cnn(), tmp_path, **fields)[0].SerializeToString(deterministic=True) for _ in "ab")
    assert first == second


def test_the_argument_is_not_changed(tmp_path):
    model = models.cnn()
    before = model.SerializeToString(deterministic=True)
    prune(model, tmp_path, amount=0.4)
    assert model.SerializeToString(deterministic=True) == before


def refused(model, tmp_path, code, **fields):
    with pytest.raises(StepFailed) as refusal:
        prune(model, tmp_path, **fields)
    assert refusal.value.code == code
    return refusal.value.message


def test_a_target_out_of_reach_says_what_is_in_reach(tmp_path):
    model = models.cnn()
    message = refused(model, tmp_path, "target_unreachable", target_macs=0.001)
    share = float(message.rstrip(".").split()[-1])
    pruned, _ = prune(model, tmp_path, target_macs=share)
    assert count_macs(pruned) / count_macs(model) == pytest.approx(share, abs=0.001)
    assert "smallest" in refused(model, tmp_path, "target_unreachable", target_parameters=0.001)


def test_patterns_that_match_nothing(tmp_path):
    assert "conv1" in refused(models.cnn(), tmp_path, "unknown_name", amount=0.5, include=("conv_1",))


def test_layers_that_only_make_outputs(tmp_path):
    assert "outputs" in refused(models.two_inputs(), tmp_path, "nothing_prunable", amount=0.5)
    refused(models.cnn(), tmp_path, "nothing_prunable", amount=0.5, include=("fc",))
    assert "round_to 64" in refused(models.cnn(), tmp_path, "nothing_prunable", amount=0.5, round_to=64)


def test_quantized_models(tmp_path):
    integers, _ = apply(models.cnn(), QuantizeDynamic(), tmp_path)
    message = refused(integers, tmp_path, "quantized_model", amount=0.5)
    assert "prune the float model" in message


def test_weights_that_are_no_numbers(tmp_path):
    model = models.cnn()
    for tensor in model.graph.initializer:
        if tensor.name == "conv2.weight":
            value = onnx.numpy_helper.to_array(tensor).copy()
            value[0, 0, 0, 0] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    refused(model, tmp_path, "non_finite_weights", amount=0.5)


def test_unknown_operators_keep_what_they_touch(tmp_path):
    """The local response norm mixes neighbouring channels: they all stay, and those of other layers go."""
    model = models.cnn()
    nodes = list(model.graph.node)
    norm = helper.make_node("LRN", ["r1"], ["n"], "mixing", size=3)
    nodes[2].input[0] = "n"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], norm, *nodes[2:]])
    _, details = prune(model, tmp_path, amount=0.5)
    assert channels(details) == {"conv2": 8}


def test_an_open_axis_that_the_weights_know_better(tmp_path):
    """An open length is taken for another than a layer's: that layer keeps its channels, the others lose some."""
    model = models.cnn()
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.ClearField("dim_value")
    pruned, details = prune(model, tmp_path, amount=0.5)
    assert channels(details) == {"conv1": 4}
    found = run(pruned, {"x": np.ones((2, 1, 8, 8), np.float32)})
    assert found[0].shape == (2, 10)
    model = models.mlp()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    refused(model, tmp_path, "nothing_prunable", amount=0.5)


def test_cancelling(tmp_path):
    with pytest.raises(Cancelled):
        prune_channels(models.cnn(), PruneChannels(amount=0.5), Context(tmp_path, is_cancelled=lambda: True), 0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"amount": 0.5, "target_macs": 0.5},
        {"amount": 1.0},
        {"amount": 0.95},
        {"target_parameters": 0.0},
        {"amount": 0.5, "round_to": 0},
        {"amount": 0.5, "importance": "luck"},
        {"amount": 0.5, "ratio": 0.5},
    ],
)
def test_specs_that_make_no_sense(fields):
    with pytest.raises(ValidationError):
        PruneChannels(**fields)
