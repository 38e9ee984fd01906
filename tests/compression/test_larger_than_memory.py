"""Models whose weights stay in their files, with smaller limits in the place of gigabytes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from compression.context import Context
from compression.data import DataSource
from compression.errors import StepFailed
from compression.graph.inspect import inspect_model, summarize
from compression.graph.load import load
from compression.graph.stored import Stored, hold_all
from compression.graph.tensors import is_external
from compression.pipeline import run
from compression.quantization.weight_only.step import quantize_weight_only
from compression.spec import BenchmarkSpec, Cluster, PipelineSpec, Prune, QuantizeFloat16, QuantizeWeightOnly
from tests.compression.models import cnn, embedding, make_model, save_external, value, weight
from tests.compression.test_pipeline import MemoryCache, metric
from tests.compression.weight_only.models import conv_net, lstm, stack, tied

BENCHMARK = BenchmarkSpec(max_seconds=0.05, min_rounds=5, max_rounds=5, threads=1)
HELD = 1000
MODEL = "model.onnx"
MODELS = {
    "cnn": cnn,
    "convolutions in a later operator set": lambda: conv_net(4, opset=13),
    "embedding": embedding,
    "lstm": lstm,
    "stack": stack,
    "tied": tied,
}


def products():
    """Two products over 64 inputs with a bias between them."""
    rng = np.random.default_rng(0)
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "first", "bias"], ["h"], "first"),
        onnx.helper.make_node("MatMul", ["h", "second"], ["y"], "second"),
    ]
    weights = {"first": weight(rng, 64, 96), "bias": weight(rng, 96), "second": weight(rng, 96, 32)}
    return make_model(nodes, [value("x", ["n", 64])], [value("y", ["n", 32])], weights)


@pytest.fixture(autouse=True)
def _small_tensors_stay_outside(monkeypatch):
    monkeypatch.setattr("compression.graph.load.SMALLEST_OUTSIDE", 100)


@pytest.fixture
def original(tmp_path):
    return save_external(products(), tmp_path / "model.onnx")


def context(tmp_path, name="work", **options):
    folder = tmp_path / name
    folder.mkdir()
    return Context(workdir=folder, threads=1, held_bytes=HELD, **options)


def spec(*steps):
    return PipelineSpec(steps=steps, benchmark=BENCHMARK)


@pytest.mark.parametrize("mapped_from", [1 << 28, 0])
@pytest.mark.parametrize("step", [{"weight_bits": 4}, {"weight_bits": 8, "symmetric": False}, {"method": "hqq"}])
@pytest.mark.parametrize("kind", MODELS)
def test_the_result_is_that_of_a_model_in_memory(kind, step, mapped_from, tmp_path, monkeypatch):
    monkeypatch.setattr("compression.quantization.weight_only.assembly._MAPPED_FROM", mapped_from)
    monkeypatch.setattr("compression.quantization.weight_only.assembly._SETTLED_EVERY", 100)
    chosen = QuantizeWeightOnly(group_size=16, **step)
    path = save_external(MODELS[kind](), tmp_path / "model.onnx")
    outside = load(path, held_bytes=0)
    assert outside.external_data_bytes == (tmp_path / "weights.bin").stat().st_size
    assert any(is_external(tensor) for tensor in outside.model.graph.initializer)
    found, details = quantize_weight_only(outside.model, chosen, context(tmp_path))
    expected, expected_details = quantize_weight_only(load(path).model, chosen, context(tmp_path, "held"))
    assert details == expected_details
    assert summarize(found, 1, 0) == summarize(expected, 1, 0)
    arrays = {tensor.name: tensor for tensor in hold_all(found).graph.initializer}
    for tensor in expected.graph.initializer:
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(arrays.pop(tensor.name)), onnx.numpy_helper.to_array(tensor)
        )
    assert not arrays
    assert list(found.graph.node) == list(expected.graph.node)
    assert found.opset_import == expected.opset_import


def test_inspection_counts_without_holding(tmp_path):
    path = save_external(cnn(), tmp_path / "model.onnx")
    assert inspect_model(path, held_bytes=0) == inspect_model(path)


def test_a_whole_run(tmp_path, original):
    cache = MemoryCache(tmp_path / "cache")
    step = QuantizeWeightOnly(weight_bits=8, group_size=16)
    result = run(original, spec(step), context(tmp_path, step_cache=cache))
    out = tmp_path / "work" / "out"
    assert [file.name for file in result.artifacts][:2] == ["model.onnx", "model.onnx.data"]
    sizes = sum((tmp_path / name).stat().st_size for name in ("model.onnx", "weights.bin"))
    assert metric(result, "file_bytes").original == sizes == result.model.file_bytes
    assert metric(result, "file_bytes").result == sum(file.size for file in result.artifacts[:2])
    assert metric(result, "sqnr").result > 30
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    found, expected = (onnxruntime.InferenceSession(path).run(None, {"x": x})[0] for path in (out / MODEL, original))
    np.testing.assert_allclose(found, expected, atol=0.1)

    again = run(original, spec(step), context(tmp_path, "again", step_cache=cache))
    assert again.steps[0].cached
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "again" / "out" / name).read_bytes() == (out / name).read_bytes()


def test_weights_are_read_piece_by_piece(tmp_path, original, monkeypatch):
    """The largest weight has 6144 numbers; no more than 1024 of them are read at once."""
    monkeypatch.setattr("compression.quantization.weight_only.step._PIECE", 1024)
    monkeypatch.setattr("compression.quantization.weight_only.step._SLAB", 1536)
    monkeypatch.setattr("compression.graph.parameters._PIECE", 1000)
    read, part = [], Stored.part
    monkeypatch.setattr(Stored, "part", lambda self, start, stop: read.append(stop - start) or part(self, start, stop))
    model = load(original, held_bytes=HELD).model
    summarize(model, 1, 0)
    quantize_weight_only(model, QuantizeWeightOnly(group_size=16), context(tmp_path))
    assert max(read) <= 1536  # whole rows of 96, in groups of 16
    assert sum(read) >= 2 * (64 * 96 + 96 * 32)


@pytest.mark.parametrize("step", [Prune(amount=0.5), Cluster(clusters=4), QuantizeFloat16()])
def test_a_step_that_holds_the_model_takes_what_fits(tmp_path, original, step):
    result = run(original, spec(step), context(tmp_path))
    assert result.compressed.parameters == 64 * 96 + 96 + 96 * 32
    assert [file.name for file in result.artifacts][:2] == ["model.onnx", "weights.safetensors"]


def test_steps_after_the_one_that_made_it_small(tmp_path, original):
    result = run(original, spec(Prune(amount=0.5), QuantizeWeightOnly(group_size=16)), context(tmp_path))
    assert result.compressed.nonzero_parameters < 0.55 * result.model.parameters
    assert result.compressed.quantized


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (Prune(amount=0.5), "prune"),
        (QuantizeFloat16(), "quantize float16"),
        (QuantizeWeightOnly(method="gptq"), "quantize weight_only by method 'gptq'"),
    ],
)
def test_a_step_that_holds_the_model_refuses_what_does_not_fit(tmp_path, original, step, named):
    size = 4 * (64 * 96 + 96 + 96 * 32)
    np.savez(tmp_path / "samples.npz", x=np.zeros((4, 64), np.float32))
    data = {"calibration": DataSource(tmp_path / "samples.npz")}
    with pytest.raises(StepFailed) as refusal:
        run(original, spec(step), context(tmp_path, memory_bytes=3 * size - 3), data)
    assert refusal.value.code == "model_too_large_for_step"
    for part in (f"steps[0] ({named})", f"{size:,} bytes", f"{size - 1:,} here", "'weight_only'", "'rtn' or 'hqq'"):
        assert part in refusal.value.message


def test_what_does_not_fit_side_by_side_runs_one_after_the_other(tmp_path, original):
    step = QuantizeWeightOnly(group_size=16, weight_bits=8)
    beside = run(original, spec(step), context(tmp_path, "enough"))
    apart = run(original, spec(step), context(tmp_path, memory_bytes=50_000))
    sizes = ["file_bytes", "gzip_bytes", "parameters", "nonzero_parameters", "macs"]
    assert [one.name for one in apart.metrics] == [*sizes, "top1_agreement", "cosine_similarity", "sqnr"]
    assert metric(apart, "sqnr").result == pytest.approx(metric(beside, "sqnr").result, abs=6)
    (note,) = [note for note in apart.notes if note.startswith("Outputs were compared on 32 samples")]
    assert "50,000" in note
    assert "Latency, memory and accuracy were not measured" in note


def test_what_cannot_be_run_at_all(tmp_path, original, monkeypatch):
    def fails(*_):
        raise StepFailed("verification_failed", "It cannot be mapped.")

    monkeypatch.setattr("compression.benchmarking.apart._Apart.run", fails)
    result = run(original, spec(QuantizeWeightOnly(group_size=16)), context(tmp_path, memory_bytes=50_000))
    assert "sqnr" not in {one.name for one in result.metrics}
    (note,) = [note for note in result.notes if note.startswith("Only sizes were measured: both models at once")]
    assert note.endswith("It cannot be mapped.")


def test_what_no_process_may_map_is_handed_out_unverified_and_it_is_said(tmp_path, original, monkeypatch):
    monkeypatch.setattr("compression.memory.address_space", lambda: (1 << 30) + 5000)
    monkeypatch.setattr("compression.pipeline.reference_outputs", lambda *_, **__: pytest.fail("the result is run"))
    result = run(original, spec(QuantizeWeightOnly(group_size=16)), context(tmp_path, memory_bytes=1 << 30))
    (note,) = [note for note in result.notes if note.startswith("The result was not loaded and run")]
    data = tmp_path / "work" / "out" / "model.onnx.data"
    assert f"{data.stat().st_size:,} bytes" in note
