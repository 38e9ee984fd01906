"""The step as a whole: what the student learns, what it is exported as, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.distillation.spec import Distill
from compression.distillation.step import distill
from compression.errors import DataRejected, StepFailed
from compression.graph.inspect import summarize
from compression.pipeline import run
from compression.spec import PipelineSpec
from compression.training.step import TrainingMaterial
from tests.compression import models

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits-cnn.onnx"
SMALL = {"name": "cnn", "width": 0.25, "depth": 2}


@pytest.fixture
def learn(tmp_path):
    """Distil a model with arrays; returns the student, what the step reports, and the context's messages."""

    def learn(model, arrays, *, seed=0, epochs=2, training=None, **options):
        np.savez(tmp_path / "training.npz", **arrays)
        feed = ModelFeed(open_dataset(DataSource(tmp_path / "training.npz")), summarize(model, 0, 0), "training")
        spec = Distill.model_validate({"student": SMALL, "training": {"epochs": epochs, **(training or {})}, **options})
        material = TrainingMaterial(feed, lambda: model, seed)
        return distill(model, spec, Context(workdir=tmp_path, threads=1), material)

    return learn


def outputs(model, **inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def digits(samples=256):
    return models.digits()[0][:samples]


def test_a_job_without_labels(tmp_path):
    pictures, labels = models.digits()
    np.savez(tmp_path / "training.npz", image=pictures[:1200])
    np.savez(tmp_path / "evaluation.npz", image=pictures[1200:], labels=labels[1200:])
    data = {role: DataSource(tmp_path / f"{role}.npz") for role in ("training", "evaluation")}
    spec = PipelineSpec.model_validate(
        {
            "steps": [
                {
                    "type": "distill",
                    "student": {"kind": "architecture", "name": "mlp", "width": 0.5},
                    "features": {},
                    "relations": {},
                    "training": {"epochs": 8},
                },
                {"type": "prune", "amount": 0.2},
                {"type": "quantize", "mode": "dynamic"},
            ],
            "benchmark": {"max_seconds": 0.05, "min_rounds": 5, "max_rounds": 5, "threads": 1},
        }
    )
    phases = []
    work = tmp_path / "work"
    work.mkdir()
    context = Context(
        workdir=work, threads=1, progress=lambda phase, fraction, message="": phases.append((fraction, phase))
    )
    result = run(DIGITS, spec, context, data)

    metrics = {metric.name: metric for metric in result.metrics}
    assert metrics["accuracy"].original > 0.95
    assert metrics["accuracy"].result > 0.85
    assert result.compressed.parameters < result.model.parameters / 3
    assert result.compressed.macs < result.model.macs / 20
    details = result.steps[0].details
    assert details["compared"] == {"logits": "softmax"}
    assert details["same_class"] > 0.9
    assert set(details["losses"]) == {"logits", "features", "relations"}
    assert details["export_difference"] < 1e-4
    # Two dense layers with batch norms of four vectors, and the head.
    size = 64 * 128 + 128 * 128 + 2 * 4 * 128 + 128 * 10 + 10
    assert details["parameters"] == {"teacher": result.model.parameters, "student": size}
    assert any("no labels" in note for note in details["notes"])
    written = onnx.load(work / "out" / "model.onnx")
    assert [value.name for value in written.graph.input] == ["image"]
    assert [value.name for value in written.graph.output] == ["logits"]
    assert phases == sorted(phases, key=lambda one: one[0])
    assert list(dict.fromkeys(phase for _, phase in phases))[:4] == ["loading", "distilling", "pruning", "quantizing"]


def test_the_same_seed_gives_the_same_bytes(learn):
    options = {"features": {"layers": 1}, "epochs": 1}
    first, second, other = (
        learn(models.cnn(), {"x": digits(128)}, seed=seed, **options)[0].SerializeToString(deterministic=True)
        for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


def test_every_loss_with_labels(learn):
    pictures, labels = models.digits()
    arrays = {"x": pictures[:200], "labels": labels[:200]}
    _, details = learn(models.cnn(), arrays, features={}, attention={}, relations={})
    assert set(details["losses"]) == {"labels", "logits", "features", "attention", "relations"}
    assert {name: len(pairs) for name, pairs in details["matched"].items()} == {
        "features": 2,
        "attention": 2,
        "relations": 1,
    }
    assert details["training"]["epochs"][-1]["validation_accuracy"] is not None
    assert details["notes"] == []


def test_features_alone_teach_with_labels(learn):
    pictures, labels = models.digits()
    arrays = {"x": pictures[:300], "labels": labels[:300]}
    _, details = learn(models.cnn(), arrays, logits=None, features={}, labels=1.0)
    assert set(details["losses"]) == {"labels", "features"}


def softmax_teacher():
    model = models.cnn()
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("Softmax", ["z"], ["logits"], "softmax", axis=-1))
    return model


@pytest.mark.parametrize("student", [SMALL, {"kind": "slim", "width": 0.5}], ids=["new", "slim"])
def test_probabilities_stay_probabilities(learn, student):
    student, details = learn(softmax_teacher(), {"x": digits()}, student=student)
    (found,) = outputs(student, x=digits())
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert found.min() >= 0
    assert details["compared"] == {"logits": "softmax"}
    assert not any("taken for scores" in note for note in details["notes"])


def scaled_regressor():
    """(n, 6) to two numbers, one of them around 5,000."""
    model = models.mlp(features=6, hidden=8, classes=2)
    weights = models.weights_of(model)
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights["w2"] * np.float32([1000, 1]), "w2"))
        if tensor.name == "b2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32([5000, -1]), "b2"))
    return model


@pytest.mark.parametrize("labelled", [True, False])
def test_regression_at_any_scale(learn, labelled):
    model = scaled_regressor()
    x = np.random.default_rng(0).standard_normal((600, 6)).astype(np.float32)
    (wanted,) = outputs(model, x=x)
    arrays = {"x": x, "targets": wanted} if labelled else {"x": x}
    student, details = learn(
        model,
        arrays,
        student={"name": "mlp", "width": 0.25, "depth": 1},
        logits={"compare": "auto" if labelled else "values"},
        epochs=20,
        training={"learning_rate": 0.01},
    )
    assert details["compared"] == {"logits": "values"}
    assert "same_class" not in details
    (found,) = outputs(student, x=x)
    explained = 1 - ((found - wanted) ** 2).mean(0) / wanted.var(0)
    assert explained.min() > 0.8


def test_a_teacher_that_fixes_its_batch(learn):
    student, details = learn(models.cnn(batch=4), {"x": digits(102)}, features={}, epochs=1)
    assert outputs(student, x=digits(7))[0].shape == (7, 10)
    assert len(details["matched"]["features"]) == 2


def test_a_slim_student_keeps_the_graph(learn):
    pictures, labels = models.digits()
    teacher = onnx.load(DIGITS)
    arrays = {"image": pictures[:400], "labels": labels[:400]}
    student, details = learn(teacher, arrays, student={"kind": "slim", "width": 0.5, "round_to": 4}, features={})
    assert [node.op_type for node in student.graph.node] == [node.op_type for node in teacher.graph.node]
    weights = models.weights_of(student)
    assert weights["stem.conv.weight"].shape == (16, 1, 3, 3)
    assert weights["widen.conv.weight"].shape == (32, 16, 3, 3)
    assert details["macs"]["student"] < 0.3 * details["macs"]["teacher"]
    assert [pair["student"]["name"] for pair in details["matched"]["features"]] == [
        pair["teacher"]["name"] for pair in details["matched"]["features"]
    ]
    (scores,) = outputs(student, image=pictures[400:])
    assert (scores.argmax(1) == labels[400:]).mean() > 0.8


def test_several_inputs(learn):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((64, 4)).astype(np.float32),
        "b": rng.standard_normal((64, 6)).astype(np.float32),
    }
    student, _ = learn(models.two_inputs(), arrays, student={"name": "mlp", "width": 0.25}, epochs=1)
    assert outputs(student, **arrays)[0].shape == (64, 5)


def test_tokens(learn):
    ids = np.random.default_rng(0).integers(0, 50, (64, 6))
    student, details = learn(
        models.embedding(),
        {"ids": ids},
        student={"name": "transformer", "width": 0.25, "depth": 1},
        epochs=1,
        relations={},
    )
    assert outputs(student, ids=ids[:, :4])[0].shape == (64, 3)
    assert details["compared"] == {"logits": "softmax"}


def refused(learn, code, model=None, arrays=None, **options):
    with pytest.raises((StepFailed, DataRejected)) as caught:
        learn(model or models.cnn(), arrays or {"x": digits(32)}, **options)
    assert caught.value.code == code
    return caught.value.message


def test_bad_input_is_named(learn):
    assert "give 'logits'" in refused(learn, "student_head_untrained", logits=None, features={})
    message = refused(learn, "no_matching_layers", student={"name": "mlp", "width": 0.25}, attention={})
    assert "'attention' compares activations with positions" in message
    assert "batch_size to 2 or more" in refused(learn, "batch_too_small", training={"batch_size": 1})
    assert "takes one input" in refused(
        learn,
        "student_does_not_fit",
        models.two_inputs(),
        {"a": np.zeros((8, 4), np.float32), "b": np.zeros((8, 6), np.float32)},
    )
    nothing = refused(
        learn,
        "nothing_prunable",
        models.embedding(),
        {"ids": np.zeros((8, 3), np.int64)},
        student={"kind": "slim", "width": 0.9999},
    )
    assert "amount" in nothing


def test_a_loss_that_is_not_finite(learn):
    message = refused(
        learn,
        "loss_not_finite",
        training={"optimizer": "sgd", "learning_rate": 100, "warmup_epochs": 0, "batch_size": 8},
        arrays={"x": digits(64)},
        student={"name": "squeezenet", "width": 0.25},
        epochs=3,
    )
    assert "at step" in message
    assert "Lower training.learning_rate" in message


def test_labels_beyond_a_yes_or_no(learn):
    model = models.mlp(features=6, hidden=8, classes=1)
    x = np.zeros((40, 6), np.float32)
    arrays = {"x": x, "labels": np.arange(40) % 2}
    _, details = learn(model, arrays, student={"name": "mlp", "width": 0.25}, epochs=1)
    assert details["compared"] == {"logits": "sigmoid"}
    assert set(details["losses"]) == {"labels", "logits"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": {"name": "resnet"}}, "Input should be 'mobilenet_v2'"),
        ({"student": {"kind": "graph"}}, "student.kind must be architecture, slim or model"),
        ({"student": {"name": "mobilenet_v2", "depth": 3}}, "depth has no effect on 'mobilenet_v2'"),
        ({"student": {"name": "cnn", "width": 3}}, "less than or equal to 2"),
        ({"student": {"kind": "slim", "width": 1}}, "less than 1"),
        ({"logits": None}, "nothing is taught"),
        ({"include": ["conv1"]}, "include and exclude have no effect"),
        ({"training": {"teacher": "original"}}, "training.teacher has no effect"),
        ({"training": {"temperature": 3}}, "use logits.temperature"),
        ({"relations": {"distance": 0, "angle": 0}}, "leave relations out"),
        ({"labels": -1}, "greater than or equal to 0"),
    ],
)
def test_specs_without_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Distill.model_validate({"student": SMALL, **options})


def test_a_spec_written_out_is_read_back():
    spec = Distill.model_validate({"student": SMALL, "features": {}})
    assert Distill.model_validate_json(spec.model_dump_json()) == spec
