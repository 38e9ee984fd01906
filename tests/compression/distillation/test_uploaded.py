"""An uploaded network as the student: what fits, under which names, and that it learns from where it was."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from compression.context import Context
from compression.data import DataSource
from compression.distillation.spec import Distill
from compression.errors import ModelRejected, StepFailed
from compression.pipeline import run
from compression.spec import PipelineSpec

RNG = np.random.default_rng(3)


def network(path, *, inputs=("x",), features=4, hidden=16, classes=3, softmax=False, output="y"):
    """Dense layers over the sum of the inputs."""
    weights = {
        "first": RNG.normal(size=(features, hidden)).astype(np.float32),
        "second": RNG.normal(size=(hidden, classes)).astype(np.float32),
    }
    nodes = []
    name = inputs[0]
    for position, other in enumerate(inputs[1:]):
        weights["twice"] = np.array([2], np.float32)
        nodes += [
            helper.make_node("Mul", [other, "twice"], [f"doubled{position}"]),
            helper.make_node("Add", [name, f"doubled{position}"], [f"sum{position}"]),
        ]
        name = f"sum{position}"
    last = "logits" if softmax else output
    nodes += [
        helper.make_node("MatMul", [name, "first"], ["h"], "one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "second"], [last], "two"),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", [last], [output], axis=-1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["n", features]) for one in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(values, one) for one, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def distilled(tmp_path):
    def distilled(teacher, student, arrays, **training):
        np.savez(tmp_path / "training.npz", **arrays)
        steps = [{"type": "distill", "student": {"kind": "model"}, "training": {"learning_rate": 0.01, **training}}]
        spec = PipelineSpec.model_validate({"steps": steps, "benchmark": {"max_seconds": 0.05, "min_rounds": 5}})
        data = {"training": DataSource(tmp_path / "training.npz")}
        workdir = tmp_path / "work"
        workdir.mkdir(exist_ok=True)
        result = run(teacher, spec, Context(workdir, threads=1), data, student=student)
        return result, onnx.load(workdir / "out" / "model.onnx")

    return distilled


def outputs(model, **inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def agreement(first, second, **inputs):
    return float((outputs(first, **inputs).argmax(1) == outputs(second, **inputs).argmax(1)).mean())


def test_it_learns_under_the_teachers_names(tmp_path, distilled):
    teacher = network(tmp_path / "teacher.onnx")
    student = network(tmp_path / "student.onnx", inputs=("features",), hidden=8, output="scores")
    x = RNG.normal(size=(512, 4)).astype(np.float32)
    result, learned = distilled(teacher, student, {"x": x}, epochs=15)
    assert [value.name for value in learned.graph.input] == ["x"]
    assert [value.name for value in learned.graph.output] == ["y"]
    assert {tensor.name: list(tensor.dims) for tensor in learned.graph.initializer} == {
        "first": [4, 8],
        "second": [8, 3],
    }
    fresh = RNG.normal(size=(500, 4)).astype(np.float32)
    before = outputs(onnx.load(teacher), x=fresh).argmax(1) == outputs(onnx.load(student), features=fresh).argmax(1)
    assert agreement(onnx.load(teacher), learned, x=fresh) > before.mean() + 0.3
    assert result.steps[0].details["parameters"] == {"teacher": 16 * 7, "student": 8 * 7}


def test_inputs_of_the_same_names_in_another_order(tmp_path, distilled):
    teacher = network(tmp_path / "teacher.onnx", inputs=("a", "b"))
    student = network(tmp_path / "student.onnx", inputs=("b", "a"))
    arrays = {name: RNG.normal(size=(256, 4)).astype(np.float32) for name in ("a", "b")}
    # One tiny step: what comes out is what the uploaded student gave for the inputs of these names.
    _, learned = distilled(teacher, student, arrays, epochs=1, learning_rate=1e-9, validation_share=0)
    assert [value.name for value in learned.graph.input] == ["a", "b"]
    np.testing.assert_allclose(outputs(learned, **arrays), outputs(onnx.load(student), **arrays), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        ({"classes": 5}, r"output 'y' has the shape \[5\] for a sample, the teacher's 'y' \[3\]"),
        ({"softmax": True}, "ends in softmax, the teacher's 'y' in no activation"),
        ({"inputs": ("x", "z")}, "takes 2 inputs, the teacher 1"),
        ({"features": 6}, "does not run on the teacher's inputs"),
    ],
)
def test_one_that_does_not_fit(tmp_path, distilled, student, reason):
    teacher = network(tmp_path / "teacher.onnx")
    other = network(tmp_path / "student.onnx", **student)
    with pytest.raises(StepFailed, match=reason) as caught:
        distilled(teacher, other, {"x": RNG.normal(size=(64, 4)).astype(np.float32)}, epochs=1)
    assert caught.value.code == "student_does_not_fit"


def test_named_for_nothing_and_not_named(tmp_path):
    teacher, student = network(tmp_path / "teacher.onnx"), network(tmp_path / "student.onnx")
    prune = PipelineSpec.model_validate({"steps": [{"type": "prune", "amount": 0.5}]})
    with pytest.raises(ModelRejected) as caught:
        run(teacher, prune, Context(tmp_path), student=student)
    assert caught.value.code == "student_not_used"
    distil = PipelineSpec.model_validate({"steps": [{"type": "distill", "student": {"kind": "model"}}]})
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 4), np.float32))
    with pytest.raises(ModelRejected) as caught:
        run(teacher, distil, Context(tmp_path), {"training": DataSource(tmp_path / "x.npz")})
    assert caught.value.code == "student_missing"


def test_the_students_bytes_are_part_of_the_steps_key():
    from compression.cache import step_keys

    spec = PipelineSpec.model_validate({"steps": [{"type": "distill", "student": {"kind": "model"}}]})
    keys = {step_keys("a", {}, spec, student_sha256=student)[0] for student in ("b", "c", None)}
    assert len(keys) == 3


def test_the_kinds_are_named():
    with pytest.raises(ValidationError, match=r"student\.kind must be architecture, slim or model"):
        Distill.model_validate({"student": {"kind": "bigger"}})
    assert Distill.model_validate({"student": {"kind": "model"}}).needs_student
    assert not Distill.model_validate({"student": {"kind": "slim"}}).needs_student
