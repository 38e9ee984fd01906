"""What is accepted as a model, what is refused and by which code, and the canonical form."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compression.errors import ModelRejected
from compression.graph.limits import Limits
from compression.graph.load import load, load_model
from tests.compression import models


def rejection(path, **options):
    with pytest.raises(ModelRejected) as caught:
        load_model(path, **options)
    assert len(caught.value.message) < 600
    return caught.value.code


def run(model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def test_a_model_comes_through_unchanged(tmp_path):
    model = models.cnn()
    assert load_model(models.save(model, tmp_path / "m.onnx")).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize(
    "data", [b"", b"hello, world", b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(100), bytes(1000), b"\xff" * 1000]
)
def test_other_bytes(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert rejection(path) == "not_onnx"


def test_every_truncation_is_told(tmp_path):
    data = models.cnn().SerializeToString()
    path = tmp_path / "m.onnx"
    for end in (*range(1, 120), *range(120, len(data), 997), len(data) - 1):
        path.write_bytes(data[:end])
        assert rejection(path) in ("truncated_model", "not_onnx"), end
        assert end < 2 or rejection(path) == "truncated_model", end


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_arbitrary_and_damaged_bytes_never_crash(tmp_path, data):
    whole = bytearray(models.two_inputs().SerializeToString())
    if data.draw(st.booleans()):
        for position in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
            whole[position] = data.draw(st.integers(0, 255))
    else:
        whole = data.draw(st.binary(max_size=300))
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    with contextlib.suppress(ModelRejected):
        assert load_model(path).graph.node


def test_too_large_a_file(tmp_path):
    path = models.save(models.cnn(), tmp_path / "m.onnx")
    assert rejection(path, limits=Limits(max_bytes=1000)) == "model_too_large"


def test_a_few_bytes_that_declare_64_gib(tmp_path):
    model = models.mlp()
    model.graph.initializer[0].CopyFrom(TensorProto(name="w1", data_type=TensorProto.FLOAT, dims=[1 << 17, 1 << 17]))
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "invalid_model"


def test_a_few_bytes_that_compute_64_gib(tmp_path):
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["y"], "huge")]
    model = models.make_model(
        nodes, [], [models.value("y", [1 << 17, 1 << 17])], {"shape": np.array([1 << 17, 1 << 17], np.int64)}
    )
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "model_too_large"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-4]),
        lambda tensor: setattr(tensor, "data_type", 9999),
        lambda tensor: tensor.dims.__setitem__(0, -1),
        lambda tensor: tensor.dims.__setitem__(0, 1 << 40),
    ],
)
def test_tensors_that_contradict_themselves(tmp_path, spoil):
    model = models.mlp()
    spoil(model.graph.initializer[0])
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "invalid_model"


def test_foreign_operators(tmp_path):
    model = models.cnn()
    model.graph.node[1].domain = "evil.plugin"
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "operator_domain_not_allowed"


def test_an_unknown_operator(tmp_path):
    model = models.cnn()
    model.graph.node[1].op_type = "NoSuchOperator"
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "invalid_model"


def test_a_dangling_input(tmp_path):
    model = models.cnn()
    model.graph.node[1].input[0] = "nowhere"
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "invalid_model"


def test_a_graph_without_nodes(tmp_path):
    model = models.cnn()
    model.graph.ClearField("node")
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "invalid_model"


def test_too_many_nodes_and_tensors(tmp_path):
    path = models.save(models.cnn(), tmp_path / "m.onnx")
    assert rejection(path, limits=Limits(max_nodes=6, max_initializers=6)) == "too_many_nodes"
    assert rejection(path, limits=Limits(max_nodes=7, max_initializers=5)) == "too_many_tensors"


def nested(depth):
    """If inside If, `depth` levels deep."""
    output = models.value("y", [1])
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "leaf", [], [output])
    for level in range(depth):
        node = helper.make_node("If", ["c"], ["y"], f"if{level}", then_branch=body, else_branch=body)
        body = helper.make_graph([node], f"level{level}", [], [output])
    body.input.extend([models.value("x", [1]), models.value("c", [], TensorProto.BOOL)])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_subgraphs_too_deep(tmp_path):
    load_model(models.save(nested(3), tmp_path / "m.onnx"))
    assert rejection(models.save(nested(9), tmp_path / "deep.onnx")) == "subgraphs_too_deep"


def test_external_data_is_taken_in(tmp_path):
    loaded = load(models.save_external(models.cnn(), tmp_path / "m.onnx"))
    assert loaded.external_files == ("weights.bin",)
    assert loaded.external_data_bytes == (tmp_path / "weights.bin").stat().st_size
    assert loaded.file_bytes == loaded.external_data_bytes + (tmp_path / "m.onnx").stat().st_size
    expected = models.weights_of(models.cnn())
    for name, value in models.weights_of(loaded.model).items():
        np.testing.assert_array_equal(value, expected[name])


def test_external_data_beyond_one_file(tmp_path, monkeypatch):
    """With a smaller limit in the place of protobuf's 2 GiB; the checker then sees weights as inputs."""
    monkeypatch.setattr("compression.graph.load.LARGEST_MESSAGE", 5000)
    checked, check = [], onnx.checker.check_model
    monkeypatch.setattr(onnx.checker, "check_model", lambda model: checked.append(model) or check(model))
    path = models.save_external(models.cnn(), tmp_path / "m.onnx")
    loaded = load_model(path, limits=Limits(max_bytes=5000))
    assert {value.name for value in checked[-1].graph.input} == {"x", "conv2.weight", "fc.weight"}
    assert models.weights_of(loaded).keys() == models.weights_of(models.cnn()).keys()
    total = path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert rejection(path, limits=Limits(max_total_bytes=total - 1)) == "model_too_large"
    load_model(path, limits=Limits(max_total_bytes=total))
    wrong = onnx.load(path, load_external_data=False)
    wrong.graph.node[0].op_type = "Convolution"
    models.save(wrong, path)
    assert rejection(path) == "invalid_model"


def external(tmp_path, **entries):
    """A model whose first weight names external data by these entries."""
    models.save_external(models.cnn(), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    return models.save(model, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "location",
    ["../weights.bin", "/etc/passwd", "a/weights.bin", "..", ".", "", "a\\weights.bin", "w\0.bin", "x" * 300],
)
def test_external_data_outside_the_folder(tmp_path, location):
    assert rejection(external(tmp_path, location=location)) == "external_data_unsafe"


def test_external_data_that_is_missing(tmp_path):
    assert rejection(external(tmp_path, location="other.bin")) == "external_data_missing"


@pytest.mark.parametrize("entries", [{"offset": "1000000"}, {"offset": "-4"}, {"length": "1"}, {"offset": "1e3"}])
def test_external_data_outside_the_file(tmp_path, entries):
    assert rejection(external(tmp_path, **entries)) == "external_data_invalid"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_external_data_that_is_a_link(tmp_path, link):
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    path = external(tmp_path)
    (tmp_path / "weights.bin").rename(secret / "real.bin")
    link(secret / "real.bin", tmp_path / "weights.bin")
    assert rejection(path) == "external_data_unsafe"


def test_external_data_that_is_a_pipe_or_folder(tmp_path):
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    os.mkfifo(tmp_path / "weights.bin")
    assert rejection(path) == "external_data_unsafe"
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "weights.bin").mkdir()
    assert rejection(path) == "external_data_unsafe"


@pytest.mark.parametrize("ir_version", [3, 10])
def test_weights_in_constant_nodes_become_initializers(tmp_path, ir_version):
    reference = models.mlp()
    weights = models.weights_of(reference)
    constants = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v)) for n, v in weights.items()]
    model = models.make_model(
        [*constants, *reference.graph.node],
        list(reference.graph.input),
        list(reference.graph.output),
        {},
        opset=13,
        ir_version=ir_version,
    )
    loaded = load_model(models.save(model, tmp_path / "m.onnx"))
    assert {tensor.name for tensor in loaded.graph.initializer} == set(weights)
    assert all(node.op_type != "Constant" for node in loaded.graph.node)
    assert loaded.ir_version == ir_version
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    np.testing.assert_array_equal(run(loaded, {"x": x})[0], run(model, {"x": x})[0])


def with_functions(calls):
    """y = f(x), with functions given as {name: [names called in turn]}."""
    functions = []
    for name, called in calls.items():
        values = ["a", *(f"v{i}" for i in range(len(called) - 1)), "b"]
        body = [
            helper.make_node(one, [values[i]], [values[i + 1]], domain="own" if one in calls else "")
            for i, one in enumerate(called)
        ]
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", name, ["a"], ["b"], body, opsets))
    graph = helper.make_graph(
        [helper.make_node("f", ["x"], ["y"], "call", domain="own")],
        "g",
        [models.value("x", ["n"])],
        [models.value("y", ["n"])],
    )
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def test_functions_are_inlined(tmp_path):
    loaded = load_model(models.save(with_functions({"f": ["Neg", "g"], "g": ["Abs", "Exp"]}), tmp_path / "m.onnx"))
    assert [node.op_type for node in loaded.graph.node] == ["Neg", "Abs", "Exp"]
    np.testing.assert_allclose(run(loaded, {"x": np.array([-1, 2], np.float32)})[0], np.exp([1, 2]), rtol=1e-6)


def test_functions_that_call_themselves(tmp_path):
    model = with_functions({"f": ["g"], "g": ["f"]})
    assert rejection(models.save(model, tmp_path / "m.onnx")) == "invalid_model"


def test_functions_that_blow_up(tmp_path):
    names = ["f", *(f"f{i}" for i in range(40))]
    calls = {name: [names[i + 1]] * 2 if i < 40 else ["Neg"] for i, name in enumerate(names)}
    assert rejection(models.save(with_functions(calls), tmp_path / "m.onnx")) == "too_many_nodes"


@pytest.mark.parametrize(
    ("hidden", "code"), [("tensor", "external_data_unsafe"), ("operator", "operator_domain_not_allowed")]
)
def test_what_hides_in_a_subgraph_of_a_function(tmp_path, hidden, code):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    if hidden == "tensor":
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_node("Identity", ["t"], ["o"], domain="evil" if hidden == "operator" else "")
    branch = helper.make_graph([inner], "branch", [], [models.value("o", ["n"])], [tensor])
    body = [
        helper.make_node("ReduceSum", ["a"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["b"], then_branch=branch, else_branch=branch),
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    model = with_functions({"f": ["Neg"]})
    model.functions[0].CopyFrom(helper.make_function("own", "f", ["a"], ["b"], body, opsets))
    assert rejection(models.save(model, tmp_path / "m.onnx")) == code
