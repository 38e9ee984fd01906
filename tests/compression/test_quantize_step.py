"""What all modes of quantization have in common."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compression.errors import StepFailed
from compression.quantization import isa, prepare
from compression.spec import QuantizeDynamic, QuantizeFloat16, QuantizeStatic, QuantizeWeightOnly
from tests.compression.models import cnn, make_model, mlp, value
from tests.compression.quantizing import DIGITS, apply, dataset, digits_calibration, digits_model

MODES = [QuantizeDynamic(), QuantizeStatic(), QuantizeWeightOnly(), QuantizeFloat16()]
every_mode = pytest.mark.parametrize("spec", MODES, ids=lambda spec: spec.mode)


@pytest.fixture
def pictures(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype(np.float32)
    return dataset(tmp_path, x=x)


@every_mode
def test_the_model_given_stays_as_it_is(spec, pictures, tmp_path):
    model = cnn()
    before = model.SerializeToString()
    apply(model, spec, tmp_path, pictures)
    assert model.SerializeToString() == before


@every_mode
def test_what_describes_the_model_is_kept(spec, pictures, tmp_path):
    model = cnn()
    model.doc_string, model.model_version, model.domain = "digits", 7, "org.example"
    helper.set_model_props(model, {"author": "A. Nonymous"})
    result, _ = apply(model, spec, tmp_path, pictures)
    for field in ("producer_name", "doc_string", "model_version", "domain"):
        assert getattr(result, field) == getattr(model, field)
    assert {entry.key: entry.value for entry in result.metadata_props} == {"author": "A. Nonymous"}
    assert [(entry.name, entry.type) for entry in result.graph.input] == [
        (entry.name, entry.type) for entry in model.graph.input
    ]
    assert [entry.name for entry in result.graph.output] == ["logits"]
    needed = {"ai.onnx"} | ({"com.microsoft"} if spec.mode == "weight_only" else set())
    assert {entry.domain or "ai.onnx" for entry in result.opset_import} == needed


@every_mode
def test_nothing_is_left_behind_or_printed(spec, pictures, tmp_path, monkeypatch, capfd):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.chdir(elsewhere)
    apply(cnn(), spec, tmp_path, pictures)
    assert not list(elsewhere.iterdir())
    assert not list((tmp_path / "work").iterdir())
    assert capfd.readouterr() == ("", "")


_HASHES = """
import hashlib, sys
from pathlib import Path
from tests.compression.quantizing import apply, digits_calibration, digits_model
from tests.compression.test_quantize_step import MODES

for spec in MODES:
    result, _ = apply(digits_model(), spec, Path(sys.argv[1]), digits_calibration())
    print(spec.mode, hashlib.sha256(result.SerializeToString()).hexdigest())
"""


def test_the_same_input_gives_the_same_bytes_in_every_process(tmp_path):
    """The order of Python's sets, in which ONNX Runtime keeps names, differs from process to process."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", _HASHES, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=DIGITS.parents[1],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) == len(MODES)


@every_mode
@pytest.mark.parametrize("earlier", [QuantizeDynamic(), QuantizeStatic(), QuantizeWeightOnly()], ids=lambda s: s.mode)
def test_a_quantized_model_is_not_quantized_again(spec, earlier, pictures, tmp_path):
    quantized, _ = apply(cnn(), earlier, tmp_path, pictures)
    with pytest.raises(StepFailed) as error:
        apply(quantized, spec, tmp_path, pictures)
    assert error.value.code == "already_quantized"


@every_mode
def test_a_model_without_float_weights(spec, tmp_path):
    model = make_model(
        [helper.make_node("Relu", ["x"], ["y"], "relu")], [value("x", ["n", 3])], [value("y", ["n", 3])], {}
    )
    with pytest.raises(StepFailed) as error:
        apply(model, spec, tmp_path, dataset(tmp_path, x=np.zeros((4, 3), np.float32)))
    assert error.value.code == "no_float_weights"


@every_mode
def test_weights_of_a_type_that_the_mode_does_not_know(spec, tmp_path):
    data = dataset(tmp_path, x=np.zeros((4, 64), np.float64))
    with pytest.raises(StepFailed, match="it has: float64") as error:
        apply(mlp(dtype=np.float64), spec, tmp_path, data)
    assert error.value.code == "no_float_weights"


@every_mode
def test_a_pattern_that_matches_nothing(spec, pictures, tmp_path):
    with pytest.raises(StepFailed, match=r"did you mean .*'conv1'") as error:
        apply(cnn(), spec.model_copy(update={"exclude": ("conv11",)}), tmp_path, pictures)
    assert error.value.code == "unknown_name"


@every_mode
def test_weights_that_are_not_finite(spec, pictures, tmp_path):
    model = cnn()
    values = onnx.numpy_helper.to_array(model.graph.initializer[4]).copy()
    values[3, 5] = np.nan
    model.graph.initializer[4].CopyFrom(onnx.numpy_helper.from_array(values, "fc.weight"))
    with pytest.raises(StepFailed, match=r"fc\.weight") as error:
        apply(model, spec, tmp_path, pictures)
    assert error.value.code == "non_finite_weights"


@every_mode
def test_a_model_that_the_runtime_cannot_load(spec, tmp_path):
    """ONNX's checker knows nothing of the runtime's own domain."""
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
            helper.make_node("NoSuchThing", ["x"], ["d"], "unheard of", domain="com.microsoft"),
        ],
        [value("x", ["n", 32])],
        [value("y", ["n", 32]), value("d", [])],
        {"w": np.eye(32, dtype=np.float32)},
        domains=("com.microsoft",),
    )
    with pytest.raises(StepFailed, match="NoSuchThing") as error:
        apply(model, spec, tmp_path, dataset(tmp_path, x=np.zeros((4, 32), np.float32)))
    assert error.value.code == "unsupported_by_runtime"


def test_the_node_that_the_runtime_complains_of_is_named(tmp_path):
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("Cast", ["p"], ["c"], "cast", to=TensorProto.BFLOAT16),
            helper.make_node("Sin", ["c"], ["s"], "wave of bfloat16"),
            helper.make_node("Cast", ["s"], ["y"], "back", to=TensorProto.FLOAT),
        ],
        [value("x", ["n", 3])],
        [value("y", ["n", 3])],
        {"w": np.eye(3, dtype=np.float32)},
    )
    with pytest.raises(StepFailed, match="fails at node 'wave of bfloat16' loading the model") as error:
        apply(model, QuantizeDynamic(), tmp_path)
    assert error.value.code == "unsupported_by_runtime"


@every_mode
def test_nodes_without_names_and_with_the_same_name(spec, pictures, tmp_path):
    model = cnn()
    for node in model.graph.node:
        node.name = "" if node.op_type != "Conv" else "same"
    _, details = apply(model, spec, tmp_path, pictures)
    assert [entry["name"] for entry in details["weights"]] == ["conv1.weight", "conv2.weight", "fc.weight"]
    assert [entry["nodes"] for entry in details["weights"]] == [["same"], ["same#2"], ["Gemm:logits"]]


@every_mode
def test_weights_that_are_inputs_too(spec, pictures, tmp_path):
    """As all weights were before IR version 4."""
    model = cnn()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result, _ = apply(model, spec, tmp_path, pictures)
    assert [entry.name for entry in result.graph.input] == ["x"]


@pytest.mark.parametrize(
    ("message", "raised"),
    [
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", MemoryError),
        ("BFCArena: Failed to allocate memory for requested buffer of size 68719476736", MemoryError),
        ("Quantization parameters are not specified for param c", StepFailed),
    ],
)
def test_too_little_memory_is_told_from_what_is_not_supported(message, raised):
    with pytest.raises(raised), prepare.runtime_failures("quantizing"):
        raise RuntimeError(message)


def test_details_are_plain_data(tmp_path):
    import json

    for spec in MODES:
        _, details = apply(digits_model(), spec, tmp_path, digits_calibration())
        assert json.loads(json.dumps(details)) == details


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "facts", "saturates"),
    [
        ("x86_64", "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 f16c\n", ["x86_64", "avx2", "f16c"], True),
        ("x86_64", "flags : avx2 avx_vnni", ["x86_64", "avx2", "avx_vnni"], False),
        ("x86_64", "flags : avx2 avx512f avx512_vnni", ["x86_64", "avx2", "avx512f", "avx512_vnni"], False),
        ("AMD64", "", ["amd64"], True),
        ("aarch64", "Features\t: fp asimd asimddp i8mm", ["aarch64", "asimd", "asimddp", "i8mm"], False),
        ("aarch64", "Features\t: fp asimd", ["aarch64", "asimd"], False),
    ],
)
def test_what_a_cpu_can_do(architecture, cpuinfo, facts, saturates):
    assert isa.facts(architecture, cpuinfo) == facts
    assert isa.saturates(facts) is saturates


def test_this_cpu():
    import platform

    assert isa.cpu_facts()[0] == platform.machine().lower()
    assert isa.saturates() is isa.saturates(isa.cpu_facts())


def test_importing_the_cpu_facts_and_specs_is_light():
    code = (
        "import sys, compression.spec, compression.quantization.isa; "
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    assert printed == "[]\n"
