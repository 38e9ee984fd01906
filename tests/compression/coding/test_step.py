"""The step in a whole run, and `.levity` files as inputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compression import publishing
from compression.__main__ import main
from compression.coding.decode import decode
from compression.coding.encode import encode
from compression.errors import ModelRejected, StepFailed
from compression.graph.inspect import inspect_model
from compression.graph.load import load
from compression.pipeline import run
from compression.spec import Cluster, Encode, Prune
from compression.verification import Verifier
from tests.compression import models
from tests.compression.test_pipeline import MemoryCache, context, metric, spec


@pytest.fixture
def model(tmp_path):
    return models.save(models.cnn(), tmp_path / "model.onnx")


@pytest.mark.parametrize("coder", ["rans", "huffman"])
def test_a_run_leaves_a_file_that_decodes_to_its_model(tmp_path, model, coder):
    steps = Prune(amount=0.9), Cluster(clusters=8), Encode(coder=coder)
    result = run(model, spec(*steps), context(tmp_path))
    out = tmp_path / "work" / "out"
    coded = (out / "model.levity").read_bytes()
    assert decode(coded) == (out / "model.onnx").read_bytes()
    assert [file.name for file in result.artifacts][:2] == ["model.onnx", "model.levity"]
    sizes = metric(result, "coded_bytes")
    assert sizes.result == len(coded) == result.steps[2].details["bytes"]
    assert sizes.original == len(encode(model.read_bytes(), coder=coder).data)
    assert sizes.ratio == sizes.original / sizes.result
    assert f"model.levity has {len(coded):,} bytes, the original {model.stat().st_size:,}" in " ".join(result.notes)
    (weight,) = (one for one in result.steps[2].details["weights"] if one["name"] == "fc.weight")
    assert (weight["shape"], weight["raw_bytes"]) == ([10, 256], 10_240)
    assert "codebook" in weight["form"]
    assert 0 < weight["entropy_bits_per_element"] <= weight["bits_per_element"] < 2
    assert weight["bits_per_element"] == 8 * weight["coded_bytes"] / 2560


def test_encoding_alone_is_a_pipeline_and_its_cached_result_is_the_same(tmp_path, model):
    cache = MemoryCache(tmp_path)
    first = run(model, spec(Encode()), context(tmp_path, "first", step_cache=cache))
    second = run(model, spec(Encode()), context(tmp_path, "second", step_cache=cache))
    assert second.steps[0].cached
    assert first.artifacts[1] == second.artifacts[1]
    assert decode((tmp_path / "second" / "out" / "model.levity").read_bytes()) == publishing.serialized(
        load(model).model
    )


def test_a_coded_file_is_verified_in_a_fresh_process(tmp_path, model):
    good = tmp_path / "model.levity"
    good.write_bytes(encode(model.read_bytes()).data)
    other = models.save(models.cnn(seed=1), tmp_path / "other.onnx")
    with Verifier(tmp_path) as verifier:
        verifier.verify_coded(good, model)
        with pytest.raises(StepFailed, match=r"'model\.levity' decodes to another file"):
            verifier.verify_coded(good, other)
        good.write_bytes(good.read_bytes()[:-5])
        with pytest.raises(StepFailed, match="the file ends here and should go on"):
            verifier.verify_coded(good, model)


def test_a_levity_file_is_a_model_like_another(tmp_path, model):
    coded = tmp_path / "model.levity"
    coded.write_bytes(encode(model.read_bytes()).data)
    assert inspect_model(coded) == inspect_model(model)
    assert load(coded).model == load(model).model
    result = run(coded, spec(Prune(amount=0.5)), context(tmp_path))
    assert metric(result, "file_bytes").original == (tmp_path / "work" / "original.onnx").stat().st_size
    coded.write_bytes(coded.read_bytes()[:-1])
    with pytest.raises(ModelRejected, match="stream") as caught:
        load(coded)
    assert caught.value.code == "levity_truncated"


def test_the_command_line_decodes(tmp_path, model, capsys):
    coded, back = tmp_path / "model.levity", tmp_path / "back.onnx"
    coded.write_bytes(encode(model.read_bytes()).data)
    assert main(["decode", str(coded), str(back)]) == 0
    assert back.read_bytes() == model.read_bytes()
    assert main(["decode", str(model), str(back)]) == 2
    assert capsys.readouterr().err.startswith("not_levity: ")


def test_a_model_without_weights(tmp_path):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    tiny = models.make_model([node], [models.value("x", [1, 4])], [models.value("y", [1, 4])], {})
    data = tiny.SerializeToString()
    assert decode(encode(data).data) == data
    empty = models.make_model(
        [onnx.helper.make_node("Shape", ["w"], ["y"])],
        [],
        [models.value("y", [2], onnx.TensorProto.INT64)],
        {"w": np.zeros((0, 100), np.float32)},
    ).SerializeToString()
    assert decode(encode(empty).data) == empty
