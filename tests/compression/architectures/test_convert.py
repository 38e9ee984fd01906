"""Weights become a graph that computes the same, and go back where they came from."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

from compression.context import Context
from compression.errors import ModelRejected
from compression.graph.architectures.companion import read_companion
from compression.graph.architectures.convert import convert
from compression.graph.architectures.spec import ModelSource
from compression.graph.limits import DEFAULT_LIMITS, Limits
from compression.pipeline import run
from compression.spec import PipelineSpec

PICTURE = {"shape": [3, 32, 32]}
BRIEF = {"max_seconds": 0.01, "min_rounds": 5, "max_rounds": 5}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomized(module):
    """In evaluation mode, with statistics of batch normalization that do something."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=generator)
        elif key.endswith("running_mean"):
            tensor.normal_(0, 0.2, generator=generator)
    return module.eval()


def made(tmp_path, module_or_state, architecture, given=None, limits=DEFAULT_LIMITS):
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    path = tmp_path / "weights"
    save_file(state, path)
    source = ModelSource.model_validate({"architecture": architecture, "input": given})
    return convert(path, source, tmp_path / "out", limits=limits, threads=1)


def refusal(*arguments, **more):
    with pytest.raises(ModelRejected) as caught:
        made(*arguments, **more)
    assert caught.value.message.endswith(".")
    return caught.value


def outputs(path, *arrays):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return session.run(None, dict(zip(names, (array.numpy() for array in arrays), strict=True)))


def assert_same(path, module, *arrays):
    with torch.no_grad():
        expected = module(*arrays)
    torch.testing.assert_close(torch.from_numpy(outputs(path, *arrays)[0]), expected, rtol=1e-4, atol=1e-5)


def assert_weights_are_the_modules_own(path, module, *, beside=(), transposed=()):
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    for key, tensor in module.state_dict().items():
        if key in beside:
            assert key not in stored
        else:
            array = stored[key].T if key in transposed else stored[key]
            assert array.shape == tuple(tensor.shape)
            assert (array == tensor.numpy()).all()
    back, gone = read_companion(path.with_name("state_dict.safetensors")).complete(stored)
    assert gone == []
    assert back.keys() == module.state_dict().keys()
    assert all((back[key] == tensor.numpy()).all() for key, tensor in module.state_dict().items())


def test_classifier_of_784_512_10(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
    layers = [
        {"type": "linear", "in_features": 784, "out_features": 512},
        {"type": "relu"},
        {"type": "linear", "in_features": 512, "out_features": 10},
    ]
    found = made(tmp_path, module, {"layers": layers})
    graph = tmp_path / "out" / "model.onnx"
    assert found.files == (graph, tmp_path / "out" / "state_dict.safetensors")
    assert_weights_are_the_modules_own(graph, module)
    for batch in (1, 5):
        assert_same(graph, module, torch.randn(batch, 784))
    assert found.summary.inputs[0].shape == ("batch", 784)
    assert (found.summary.parameters, found.summary.macs) == (784 * 512 + 512 + 512 * 10 + 10, 784 * 512 + 512 * 10)
    content = graph.read_bytes()
    assert not any(word in content for word in (b"stack_trace", b"pkg.torch"))


class Branchless(nn.Module):
    """A module as people write them, with layers in folders of their own."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, (3, 1), stride=(2, 1), groups=4), nn.SiLU(), nn.AvgPool2d(2, ceil_mode=True),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.norm = nn.LayerNorm(32)
        self.head = nn.ModuleDict({"fc": nn.Linear(32, 5, bias=False), "norm": nn.BatchNorm1d(5)})

    def forward(self, value):
        value = self.norm(torch.flatten(self.pool(self.features(value)), 1))
        return torch.softmax(self.head["norm"](self.head["fc"](nn.functional.gelu(value))), -1)


BRANCHLESS = [
    {"type": "conv2d", "in_channels": 3, "out_channels": 8, "kernel_size": 3, "padding": 1, "bias": False},
    {"type": "batch_norm", "num_features": 8},
    {"type": "leaky_relu", "negative_slope": 0.2},
    {"type": "max_pool2d", "kernel_size": 2},
    {
        "type": "conv2d", "in_channels": 8, "out_channels": 8, "kernel_size": [3, 1], "stride": [2, 1], "groups": 4,
    },
    {"type": "silu"},
    {"type": "avg_pool2d", "kernel_size": 2, "ceil_mode": True},
    {"type": "adaptive_avg_pool2d", "output_size": [2, 2]},
    {"type": "flatten"},
    {"type": "layer_norm", "normalized_shape": 32, "name": "norm"},
    {"type": "gelu"},
    {"type": "dropout"},
    {"type": "linear", "in_features": 32, "out_features": 5, "bias": False, "name": "head.fc"},
    {"type": "batch_norm", "num_features": 5, "name": "head.norm"},
    {"type": "softmax"},
]  # fmt: skip
for _position, _layer in enumerate(BRANCHLESS[:7]):
    _layer["name"] = f"features.{_position}"


def test_layers_of_a_module_in_folders(tmp_path):
    torch.manual_seed(0)
    module = randomized(Branchless())
    counters = {"features.1.num_batches_tracked", "head.norm.num_batches_tracked"}
    # Layers with nothing to store need names too only where their numbers would clash.
    found = made(tmp_path, module, {"layers": BRANCHLESS}, {"shape": [3, 20, 20], "name": "image"})
    graph = tmp_path / "out" / "model.onnx"
    assert_weights_are_the_modules_own(graph, module, beside=counters)
    assert_same(graph, module, torch.randn(4, 3, 20, 20))
    assert found.summary.inputs[0].name == "image"
    assert found.summary.operators["BatchNormalization"] == 2
    companion = read_companion(tmp_path / "out" / "state_dict.safetensors")
    assert companion is not None
    assert set(companion.rest) == counters
    assert all(value == 7 for value in companion.rest.values())


class Last(nn.Module):
    def forward(self, value):
        return value[0][:, -1]


class First(nn.Module):
    def forward(self, value):
        return value[0]


@pytest.mark.parametrize(
    ("modules", "layers", "given", "example"),
    [
        pytest.param(
            [nn.Embedding(50, 8), nn.LSTM(8, 6, bidirectional=True, batch_first=True), First(), nn.Linear(12, 3)],
            [
                {"type": "embedding", "num_embeddings": 50, "embedding_dim": 8},
                {"type": "lstm", "input_size": 8, "hidden_size": 6, "bidirectional": True},
                {"type": "linear", "in_features": 12, "out_features": 3, "name": "3"},
            ],
            None,
            torch.randint(0, 50, (2, 9)),
            id="lstm",
        ),
        pytest.param(
            [nn.GRU(4, 6, num_layers=2, batch_first=True), Last(), nn.Tanh(), nn.Linear(6, 3), nn.Sigmoid()],
            [
                {"type": "gru", "input_size": 4, "hidden_size": 6, "num_layers": 2, "output": "last"},
                {"type": "tanh"},
                {"type": "linear", "in_features": 6, "out_features": 3, "name": "3"},
                {"type": "sigmoid", "name": "out"},
            ],
            {"shape": [11, 4]},
            torch.randn(3, 11, 4),
            id="gru",
        ),
        pytest.param(
            [nn.Conv1d(2, 4, 5, stride=2, dilation=2), nn.BatchNorm1d(4), nn.ReLU6(), nn.Hardswish(), nn.Flatten()],
            [
                {"type": "conv1d", "in_channels": 2, "out_channels": 4, "kernel_size": 5, "stride": 2, "dilation": 2},
                {"type": "batch_norm", "num_features": 4},
                {"type": "relu6"},
                {"type": "hardswish"},
                {"type": "flatten"},
            ],
            {"shape": [2, 40]},
            torch.randn(3, 2, 40),
            id="conv1d",
        ),
    ],
)
def test_other_layers(tmp_path, modules, layers, given, example):
    module = randomized(nn.Sequential(*modules))
    made(tmp_path, module, {"layers": layers}, given)
    graph = tmp_path / "out" / "model.onnx"
    transposed = {"3.weight"} if example.dtype == torch.int64 else ()
    assert_weights_are_the_modules_own(graph, module, beside={"1.num_batches_tracked"}, transposed=transposed)
    assert_same(graph, module, example)


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    """A real network, and its graph."""
    from torchvision.models import mobilenet_v3_small

    folder = tmp_path_factory.mktemp("mobile")
    torch.manual_seed(0)
    module = randomized(mobilenet_v3_small(num_classes=10))
    torch.save(module.state_dict(), folder / "weights.pt")
    architecture = {"name": "torchvision:mobilenet_v3_small", "arguments": {"num_classes": 10}}
    source = ModelSource.model_validate({"architecture": architecture, "input": PICTURE})
    convert(folder / "weights.pt", source, folder / "out", threads=1)
    return folder, module


def test_a_network_of_torchvision(mobile):
    folder, module = mobile
    graph = folder / "out" / "model.onnx"
    counters = {key for key in module.state_dict() if key.endswith("num_batches_tracked")}
    assert len(counters) == 34
    assert_weights_are_the_modules_own(graph, module, beside=counters)
    assert_same(graph, module, torch.randn(3, 3, 32, 32))
    operators = [node.op_type for node in onnx.load(graph).graph.node]
    assert operators.count("Conv") == 52
    assert operators.count("BatchNormalization") == 34
    assert not {"Shape", "Expand", "CastLike", "Constant"} & set(operators)


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "prune", "amount": 0.5}, {"type": "cluster", "clusters": 16}],
        [{"type": "quantize", "mode": "float16"}],
    ],
    ids=["prune and cluster", "float16"],
)
def test_results_load_back_strictly(mobile, tmp_path, steps):
    folder, module = mobile
    spec = PipelineSpec.model_validate({"steps": steps, "benchmark": BRIEF})
    result = run(folder / "out" / "model.onnx", spec, Context(workdir=tmp_path, threads=1))
    assert not any("state_dict" in note for note in result.notes)

    from torchvision.models import mobilenet_v3_small

    back = mobilenet_v3_small(num_classes=10).eval()
    back.load_state_dict(load_file(tmp_path / "out" / "weights.safetensors"), strict=True)
    original, loaded = module.state_dict(), back.state_dict()
    assert all(loaded[key] == 7 for key in loaded if key.endswith("num_batches_tracked"))
    if steps[0]["type"] == "prune":
        kernels = [value for key, value in loaded.items() if value.ndim > 1]
        zeros = sum(int((value == 0).sum()) for value in kernels) / sum(value.numel() for value in kernels)
        assert zeros == pytest.approx(0.5, abs=0.01)
        assert_same(tmp_path / "out" / "model.onnx", back, torch.randn(2, 3, 32, 32))
    else:
        for key, value in loaded.items():
            torch.testing.assert_close(value, original[key], rtol=1e-3, atol=1e-6)


def test_a_result_that_cannot_load_back_says_so(mobile, tmp_path):
    folder, _ = mobile
    step = {"type": "quantize", "mode": "weight_only", "include": ["classifier.*"]}
    spec = PipelineSpec.model_validate({"steps": [step], "benchmark": BRIEF})
    result = run(folder / "out" / "model.onnx", spec, Context(workdir=tmp_path, threads=1))
    (note,) = [note for note in result.notes if "state_dict" in note]
    assert "lacks 2 keys" in note
    assert "classifier.0.weight" in note


SEQUENCES = [
    {"type": "lstm", "input_size": 16, "hidden_size": 16},
    {"type": "linear", "in_features": 16, "out_features": 64},
]


@pytest.mark.parametrize(
    "step", [{"type": "prune", "amount": 0.5}, {"type": "quantize", "mode": "weight_only", "include": ["1.weight"]}]
)
def test_matrices_that_act_on_sequences_are_found(tmp_path, step):
    """Gates that are put in another order, and matrices that an export transposes, are weights like any other."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.LSTM(16, 16, batch_first=True), First(), nn.Linear(16, 64))
    state = {key.replace("2.", "1."): value for key, value in module.state_dict().items()}
    made(tmp_path, state, {"layers": SEQUENCES})
    spec = PipelineSpec.model_validate({"steps": [step], "benchmark": BRIEF})
    result = run(tmp_path / "out" / "model.onnx", spec, Context(workdir=tmp_path / "out", threads=1))
    changed = {weight["name"] for weight in result.steps[0].details["weights"]}
    if step["type"] == "prune":
        assert changed == {"0.weight_ih_l0", "0.weight_hh_l0", "1.weight"}
        back = load_file(tmp_path / "out" / "out" / "weights.safetensors")
        assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in state.items()}
        kept = back["1.weight"] != 0
        assert 0.2 < kept.float().mean() < 0.8
        assert torch.equal(back["1.weight"][kept], state["1.weight"][kept])
    else:
        assert changed == {"1.weight"}


LINEAR = {"layers": [{"type": "linear", "in_features": 4, "out_features": 3}]}
WEIGHTS = {"0.weight": torch.ones(3, 4), "0.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"0.weight": torch.ones(3, 4)}, "it lacks 0.bias"),
        (WEIGHTS | {"9.weight": torch.ones(1)}, "the architecture has no 9.weight"),
        ({f"module.{key}": value for key, value in WEIGHTS.items()}, "without 'module.' in front the keys would fit"),
        (WEIGHTS | {"0.weight": torch.ones(4, 3)}, "0.weight is [4, 3] and should be [3, 4]"),
        (WEIGHTS | {"0.weight": torch.ones(3, 4, dtype=torch.int8)}, "0.weight holds torch.int8 and should hold"),
        ({f"k{index}": torch.ones(1) for index in range(30)}, "and 24 more"),
    ],
)
def test_keys_and_shapes_that_do_not_fit(tmp_path, state, said):
    error = refusal(tmp_path, state, LINEAR)
    assert error.code == "state_dict_mismatch"
    assert said in error.message


def test_other_precisions_are_taken_in_single(tmp_path):
    state = {key: value.to(torch.bfloat16) for key, value in WEIGHTS.items()}
    made(tmp_path, state, LINEAR)
    module = nn.Sequential(nn.Linear(4, 3))
    module.load_state_dict(state)
    assert_weights_are_the_modules_own(tmp_path / "out" / "model.onnx", module)


CONV = {"type": "conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3}


@pytest.mark.parametrize(
    ("architecture", "given", "code", "said"),
    [
        ({"name": "torchvision:resnet81"}, None, "architecture_unknown", "resnet18"),
        ({"name": "torchvision:list_models"}, None, "architecture_unknown", "has no architecture"),
        ({"name": "torchvision:quantized_resnet18"}, None, "architecture_unknown", "has no architecture"),
        ({"name": "torchvision:squeezenet1_1", "arguments": {"num_classes": "ten"}}, None, "architecture_invalid",
         "num_classes='ten'"),
        ({"name": "torchvision:squeezenet1_1", "arguments": {"depth": 3}}, None, "architecture_invalid", "depth"),
        ({"layers": [CONV]}, None, "input_missing", "[3, 224, 224]"),
        ({"layers": [{"type": "relu"}]}, None, "input_missing", "give 'input'"),
        ({"layers": [{"type": "embedding", "num_embeddings": 2, "embedding_dim": 2, "padding_idx": 5}]}, None,
         "architecture_invalid", "Layer '0' (embedding) cannot be built"),
        ({"layers": [{"type": "relu", "name": "forward"}]}, None, "architecture_invalid", "'forward'"),
    ],
)  # fmt: skip
def test_architectures_that_cannot_be_built(tmp_path, architecture, given, code, said):
    error = refusal(tmp_path, WEIGHTS, architecture, given)
    assert error.code == code
    assert said in error.message


def test_layers_that_do_not_follow_each_other(tmp_path):
    state = WEIGHTS | {"1.weight": torch.ones(2, 9), "1.bias": torch.zeros(2)}
    layers = [*LINEAR["layers"], {"type": "linear", "in_features": 9, "out_features": 2}]
    error = refusal(tmp_path, state, {"layers": layers})
    assert error.code == "architecture_invalid"
    assert "Layer '1' (linear) cannot take what comes before it, of shape [1, 3]" in error.message


def test_an_input_that_does_not_fit(tmp_path):
    error = refusal(tmp_path, {"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)}, {"layers": [CONV]},
                    {"shape": [1, 8, 8]})  # fmt: skip
    assert error.code == "architecture_invalid"
    assert "[1, 1, 8, 8]" in error.message


def test_too_large_an_architecture_is_never_allocated(tmp_path):
    wide = {"layers": [{"type": "linear", "in_features": 1_000_000, "out_features": 1_000_000}]}
    error = refusal(tmp_path, WEIGHTS, wide)
    assert (error.code, "parameters" in error.message) == ("model_too_large", True)
    error = refusal(tmp_path, WEIGHTS, {"name": "torchvision:resnet18"}, limits=Limits(max_modules=20))
    assert (error.code, "20 layers" in error.message) == ("model_too_large", True)


def test_outputs_that_are_no_numbers(tmp_path):
    error = refusal(tmp_path, WEIGHTS | {"0.weight": torch.full((3, 4), 3e38)}, LINEAR)
    assert error.code == "non_finite_outputs"


@pytest.mark.parametrize("library", ["torch", "onnxscript", "torchvision"])
def test_a_worker_without_the_libraries(tmp_path, monkeypatch, library):
    from compression.graph.architectures import convert as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == library else object())
    error = refusal(tmp_path, WEIGHTS, {"name": "torchvision:resnet18"})
    assert error.code == f"{library}_missing"
    assert "levity[train]" in error.message


def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    from compression.graph.architectures import export

    def wrong(network, names):
        model = original(network, names)
        bias = next(one for one in model.graph.initializer if one.name == "0.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.01, "0.bias"))
        return model

    original = export.Network.export
    monkeypatch.setattr(export.Network, "export", wrong)
    assert refusal(tmp_path, WEIGHTS, LINEAR).code == "export_differs"


ANEW = """
import sys
from pathlib import Path
from compression.graph.architectures.convert import convert
from compression.graph.architectures.spec import ModelSource
weights, source, out = sys.argv[1:]
convert(Path(weights), ModelSource.model_validate_json(source), Path(out), threads=1)
"""


def test_same_upload_same_bytes_in_every_process(tmp_path):
    given = {"shape": [3, 20, 20]}
    made(tmp_path, randomized(Branchless()), {"layers": BRANCHLESS}, given)
    source = json.dumps({"architecture": {"layers": BRANCHLESS}, "input": given})
    arguments = [sys.executable, "-c", ANEW, tmp_path / "weights", source, tmp_path / "again"]
    subprocess.run(arguments, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, timeout=150)
    for name in ("model.onnx", "state_dict.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
