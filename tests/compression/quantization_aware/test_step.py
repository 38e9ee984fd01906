"""Quantization-aware training from end to end."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from compression.context import Context
from compression.data import DataSource
from compression.errors import DataRejected, StepFailed
from compression.graph.to_torch import to_torch
from compression.pipeline import run
from compression.quantization import prepare
from compression.quantization.aware import step
from compression.spec import PipelineSpec
from compression.training.trainee import batch_norms
from tests.compression.models import cnn, embedding, make_model, mlp, two_inputs, value
from tests.compression.quantization_aware.networks import (
    feed_of,
    quick,
    random_pictures,
    residual,
    split_digits,
    train,
    uneven_digits,
)
from tests.compression.quantizing import DIGITS, digits_accuracy, digits_model, outputs, stored


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    images, _, labels, _ = split_digits()
    return {"image": images, "labels": labels}


def calibrated(model, spec, folder, **arrays):
    """The model with fake quantizers that have seen the data, untrained."""
    return step.calibrated(model, spec, Context(workdir=folder, threads=1), feed_of(model, folder, **arrays))


def in_module(fake, **inputs):
    with torch.no_grad():
        return fake.trainee.module(*(torch.from_numpy(inputs[name]) for name in fake.trainee.input_names)).numpy()


def kernels(model, folder):
    """Operators after ONNX Runtime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_folded_batch_norms_compute_the_same(tmp_path):
    model = residual()
    x = torch.from_numpy(random_pictures()["x"])
    fake = step.fake_quantized(model, quick(), Context(workdir=tmp_path, threads=1))
    assert not batch_norms(fake.trainee.module)
    with torch.no_grad():
        # Quantizers that watch let everything pass as it is.
        folded, unfolded = fake.trainee.module(x), to_torch(model)(x)
    torch.testing.assert_close(folded, unfolded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 4), (2, 4)])
@pytest.mark.parametrize("ranges", ["learned", "observed"])
def test_runs_as_it_was_trained(weight_bits, activation_bits, ranges, digits, tmp_path):
    """Bits, kernels, and outputs on all held-out digits: the module's within one step of the output's grid."""
    spec = quick(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        ranges=ranges,
        training={"learning_rate": 1e-3, "samples": 400},
    )
    result, details = train(digits_model(), spec, tmp_path, **digits)
    values = stored(result)
    weights = {name: array for name, array in values.items() if array.dtype == np.int8 and array.ndim > 1}
    assert len(weights) == 6
    few = [array for name, array in weights.items() if not name.startswith(("stem", "classifier"))]
    assert len(few) == 4
    low, high = -(2 ** (weight_bits - 1)) + (weight_bits == 8), 2 ** (weight_bits - 1) - 1
    for array in few:
        assert low <= array.min() < 0 < array.max() <= high
    assert not [name for name, array in values.items() if array.dtype == np.float32 and array.size > 64]
    assert digits_accuracy(result) > 0.95
    assert details["agreement"][0]["largest_difference_in_quanta"] <= 1.01

    found = kernels(result, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (5, 1, 1)
    assert not {"Conv", "Gemm", "Add", "FusedConv"} & set(found)
    assert (found["Clip"] > 0) == (activation_bits < 8)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 8), (4, 4), (2, 4)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_onnx_runtime_gives_what_the_module_gives(weight_bits, activation_bits, per_channel, digits, tmp_path):
    """Measured on the 450 held-out digits, 4,500 logits, in steps of the output's grid.

    The runtime adds whole numbers, the module floats in an order that its kernels choose: a sum halfway between two
    steps can be rounded either way, and one step of 16 inside is worth more than one of the 256 of a logit.
    """
    model = digits_model()
    spec = quick(weight_bits=weight_bits, activation_bits=activation_bits, per_channel=per_channel)
    context = Context(workdir=tmp_path, threads=1)
    fake = calibrated(model, spec, tmp_path, **digits)
    exported = prepare.finished(fake.exported(), model, context)
    images = np.load(DIGITS / "evaluation.npz")["image"]
    expected, found = in_module(fake, image=images), outputs(exported, image=images)
    quantum = float(stored(exported)["logits_scale"])
    difference = np.abs(expected - found) / quantum
    assert difference.max() < (1.01 if activation_bits == 8 else 2.01)
    assert (difference < 1.01).mean() > 0.999
    assert (difference < 0.01).mean() > 0.99
    assert np.abs(expected).max() > 20 * quantum


@pytest.mark.parametrize(
    ("model", "weight_bits", "gain"), [(uneven_digits(), 4, 0.4), (digits_model(), 2, 0.3)], ids=["4 bits", "2 bits"]
)
def test_few_bits_are_learned_to_live_with(model, weight_bits, gain, digits, tmp_path):
    """The same fake quantizers, calibrated on the same samples, without training and with it."""
    spec = quick(
        weight_bits=weight_bits,
        activation_bits=4,
        training={"epochs": 2, "learning_rate": 2e-3, "samples": 800},
    )
    rounded = prepare.finished(
        calibrated(model, spec, tmp_path, **digits).exported(), model, Context(workdir=tmp_path, threads=1)
    )
    trained, _ = train(model, spec, tmp_path, **digits)
    assert digits_accuracy(model) > 0.99
    assert digits_accuracy(trained) > digits_accuracy(rounded) + gain


def test_a_clip_that_the_range_makes_idle_goes(tmp_path):
    """ReLU6 before a pair of up to 6 stands between a convolution and its integer kernel."""
    spec = quick(weight_bits=4, activation_bits=4, ranges="observed")
    result, _ = train(residual(), spec, tmp_path, **random_pictures())
    assert "relu6" not in {node.name for node in result.graph.node}
    found = kernels(result, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (3, 1, 1)


def test_a_clip_that_cuts_stays(tmp_path):
    """With a range beyond 6, the Clip still decides what comes out."""
    model = residual()
    spec = quick(weight_bits=4, activation_bits=4, ranges="observed")
    fake = calibrated(model, spec, tmp_path, **random_pictures())
    fake.quantizers.activations["stemmed"].high.fill_(9.0)
    result = prepare.finished(fake.exported(), model, Context(workdir=tmp_path, threads=1))
    assert "relu6" in {node.name for node in result.graph.node}
    x = 5 * random_pictures()["x"]
    quantum = float(stored(result)["logits_scale"])
    assert np.abs(in_module(fake, x=x) - outputs(result, x=x)).max() < 1.01 * quantum


def test_weights_alone(tmp_path):
    result, details = train(cnn(), quick(weight_bits=3, activation_bits=None), tmp_path, **random_pictures())
    assert Counter(node.op_type for node in result.graph.node)["QuantizeLinear"] == 0
    assert np.abs(stored(result)["conv2.weight_quantized"]).max() <= 127
    assert details["activations"] == []
    assert details["agreement"][0]["equal"] == 1.0
    assert "conv1.bias" in stored(result)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (mlp(), {"x": (24, 64)}),
        (two_inputs(), {"a": (24, 4), "b": (24, 6)}),
        (cnn(batch=4), {"x": (24, 1, 8, 8)}),
    ],
    ids=["products", "two inputs", "fixed batch"],
)
def test_other_models(model, data, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in data.items()}
    _, details = train(model, quick(weight_bits=4, activation_bits=4), tmp_path, **arrays, labels=np.arange(24) % 5)
    assert details["agreement"][0]["largest_difference_in_quanta"] <= 1.01
    assert all("bits" in entry for entry in details["weights"])


def test_embeddings_stay_float_and_say_so(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50, (24, 7))
    _, details = train(embedding(), quick(), tmp_path, ids=ids, labels=np.arange(24) % 3)
    entries = {entry["name"]: entry for entry in details["weights"]}
    assert entries["table"]["skipped"] == "its operator has no integer form in this mode"
    assert entries["head"]["bits"] in (7, 8)


def test_what_is_excluded_stays_float(tmp_path):
    result, _ = train(residual(), quick(weight_bits=4, exclude=("fc",)), tmp_path, **random_pictures())
    values = stored(result)
    assert values["fc.weight"].dtype == np.float32
    assert values["block.weight_quantized"].dtype == np.int8


def test_pruned_weights_stay_zero(tmp_path):
    model = cnn()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[np.abs(values) < np.median(np.abs(values))] = 0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    spec = quick(weight_bits=4, activation_bits=4, training={"epochs": 4, "batch_size": 8, "learning_rate": 0.02})
    result, _ = train(model, spec, tmp_path, **random_pictures())
    assert not stored(result)["conv2.weight_quantized"][values == 0].any()
    freed, _ = train(model, spec.model_copy(update={"keep_zeros": False}), tmp_path, **random_pictures())
    assert stored(freed)["conv2.weight_quantized"][values == 0].any()


def test_the_same_input_gives_the_same_bytes(tmp_path):
    spec = quick(weight_bits=4, activation_bits=4)
    first, second = (train(cnn(), spec, tmp_path, **random_pictures()) for _ in range(2))
    assert first[0].SerializeToString() == second[0].SerializeToString()
    assert json.loads(json.dumps(first[1])) == second[1]


def test_the_model_given_stays_as_it_is(tmp_path):
    model = residual()
    before = model.SerializeToString()
    train(model, quick(), tmp_path, **random_pictures())
    assert model.SerializeToString() == before


def test_a_teacher_needs_no_labels(tmp_path):
    data = random_pictures()
    del data["labels"]
    _, details = train(cnn(), quick(training={"teacher": "original"}), tmp_path, **data)
    assert details["training"]["stopped"] == "finished"


def test_no_labels(tmp_path):
    data = random_pictures()
    del data["labels"]
    with pytest.raises(DataRejected) as error:
        train(cnn(), quick(), tmp_path, **data)
    assert error.value.code == "labels_missing"


def test_no_training_data(tmp_path):
    spec = PipelineSpec.model_validate({"steps": [{"type": "quantize", "mode": "qat"}]})
    with pytest.raises(DataRejected) as error:
        run(DIGITS / "digits-cnn.onnx", spec, Context(workdir=tmp_path), {})
    assert error.value.code == "training_data_missing"


def test_a_quantized_model_is_not_quantized_again(tmp_path):
    result, _ = train(cnn(), quick(), tmp_path, **random_pictures())
    with pytest.raises(StepFailed) as error:
        train(result, quick(), tmp_path, **random_pictures())
    assert error.value.code == "already_quantized"


def test_nothing_to_quantize(tmp_path):
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"], "relu")], [value("x", ["n", 3])], [value("y", ["n", 3])], {}
    )
    with pytest.raises(StepFailed) as error:
        train(model, quick(), tmp_path, x=np.zeros((4, 3), np.float32), labels=np.zeros(4, np.int64))
    assert error.value.code == "no_float_weights"


def test_only_weights_without_an_integer_form(tmp_path):
    ids = np.zeros((4, 7), np.int64)
    with pytest.raises(StepFailed, match="no integer form") as error:
        train(embedding(), quick(include=("table",)), tmp_path, ids=ids, labels=np.zeros(4, np.int64))
    assert error.value.code == "no_weights"


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(StepFailed, match=r"did you mean .*'conv1'") as error:
        train(cnn(), quick(exclude=("conv11",)), tmp_path, **random_pictures())
    assert error.value.code == "unknown_name"


def test_through_the_pipeline(digits, tmp_path):
    np.savez(tmp_path / "training.npz", **{name: array[:256] for name, array in digits.items()})
    workdir = tmp_path / "work"
    workdir.mkdir()
    qat = {"type": "quantize", "mode": "qat", "weight_bits": 4, "training": {"epochs": 1}}
    spec = PipelineSpec.model_validate(
        {"steps": [qat], "benchmark": {"max_seconds": 0.01, "min_rounds": 5, "max_rounds": 5}}
    )
    data = {"training": DataSource(tmp_path / "training.npz")}
    result = run(DIGITS / "digits-cnn.onnx", spec, Context(workdir=workdir, threads=1), data)
    assert result.steps[0].type == "quantize"
    assert digits_accuracy(onnx.load(workdir / "out" / "model.onnx")) > 0.95
