"""What models run on. The GPU paths run where there is a GPU, and are skipped elsewhere."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from compression import providers
from compression.errors import StepFailed
from compression.runtime import DoesNotRun, Model, start
from tests.compression.models import cnn, save

HERE = providers.available()


def test_the_cpu_is_always_there():
    assert HERE[0] == "cpu"
    assert providers.choose("auto", "cpu") == providers.choose("cpu", "cuda") == "cpu"


@pytest.mark.skipif("tensorrt" in HERE, reason="TensorRT is there")
def test_an_absent_provider_names_those_that_are_there():
    with pytest.raises(StepFailed, match=r"cannot use the provider 'tensorrt' here; there are: cpu") as caught:
        providers.choose("tensorrt", "cuda")
    assert caught.value.code == "provider_missing"
    assert caught.value.retryable


@pytest.mark.skipif("cuda" in HERE, reason="CUDA is there")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_runtime_that_is_built_for_a_gpu_that_is_not_there(monkeypatch):
    """It says that it has the provider, and silently runs on the CPU instead."""
    built = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *built])
    assert providers.available() == ("cpu",)
    assert providers.choose("auto", "cuda") == "cpu"
    with pytest.raises(DoesNotRun, match="could not start its provider 'cuda'"):
        start(providers._smallest_model(), "cuda")


def test_the_smallest_model_runs():
    session = onnxruntime.InferenceSession(providers._smallest_model(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([-1.0], np.float32)})[0].tolist() == [0.0]


def test_libraries_beside_the_runtime_are_found_without_importing_it(tmp_path, monkeypatch):
    assert providers.installed(gpu=False) == ["cpu"]
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('never imported')")
    (package / "capi" / "libonnxruntime_providers_cuda.so").touch()
    (package / "capi" / "libonnxruntime_providers_shared.so").touch()
    found = type("Spec", (), {"origin": str(package / "__init__.py")})
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: found if name == "onnxruntime" else None)
    assert providers.installed(gpu=True) == ["cpu", "cuda"]
    # The runtime's package holds the provider; what that needs comes from elsewhere, or does not.
    (package / "capi" / "libonnxruntime_providers_tensorrt.so").touch()
    monkeypatch.setattr(providers.ctypes.util, "find_library", lambda _name: None)
    assert providers.installed(gpu=True) == ["cpu", "cuda"]
    monkeypatch.setattr(providers.ctypes.util, "find_library", lambda name: f"lib{name}.so.10")
    assert providers.installed(gpu=True) == ["cpu", "cuda", "tensorrt"]
    assert providers.installed(gpu=False) == ["cpu"]
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda _name: None)
    assert providers.installed(gpu=True) == []


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_gives_the_outputs_of_the_cpu(tmp_path, provider):
    if provider not in HERE:
        pytest.skip(f"ONNX Runtime cannot use {provider} here")
    path = save(cnn(), tmp_path / "model.onnx")
    x = {"x": np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)}
    expected = Model(path, 1).tensors(x)["logits"]
    np.testing.assert_allclose(Model(path, 1, provider=provider).tensors(x)["logits"], expected, rtol=1e-2, atol=1e-2)
