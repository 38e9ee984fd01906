"""Which activations belong together, and that taps give exactly what the networks compute."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch

from compression.distillation.features import (
    Activation,
    GraphTap,
    StudentTap,
    aligned,
    graph_activations,
    matched,
    student_activations,
)
from compression.distillation.spec import ArchitectureStudent
from compression.distillation.students.fit import Interface, TeacherInput, TeacherOutput, fitted
from compression.graph.to_torch import to_torch
from tests.compression import models


def activation(name, depth, positions, channels=8):
    return Activation(name, depth, channels, positions, 1)


def student_of(name, shape=(1, 8, 8), **options):
    teacher = Interface((TeacherInput("x", "float32", shape),), (TeacherOutput("y", torch.float32, (10,)),), {})
    torch.manual_seed(0)
    return fitted(ArchitectureStudent(name=name, **options), teacher).eval()


def pictures(samples=3):
    return torch.from_numpy(models.digits()[0][:samples])


def test_matching_by_depth_and_size():
    teacher = [
        activation("t1", 0.2, (16, 16)),
        activation("t2", 0.4, (8, 8)),
        activation("t3", 0.6, (8, 8)),
        activation("t4", 0.8, (4, 4)),
        activation("t5", 1.0, ()),
    ]
    student = [activation("s1", 0.33, (16, 16)), activation("s2", 0.66, (8, 8)), activation("s3", 1.0, ())]

    def names(pairs):
        return [(pair.student.name, pair.teacher.name) for pair in pairs]

    # A third: s1 with t1 costs 0 + 0.13, with t2 (0.07) one halving of both sides, which is 1.
    assert names(matched(student, teacher, 3)) == [("s1", "t1"), ("s2", "t3"), ("s3", "t5")]
    assert names(matched(student, teacher, 1)) == [("s3", "t5")]
    # Without vectors the deepest pair of one size comes first.
    assert names(matched(student, teacher, 2, with_positions=True)) == [("s1", "t1"), ("s2", "t3")]
    assert names(matched(student[2:], teacher, 2, with_positions=True)) == []
    assert len(matched(student, teacher, 9)) == 3


def test_a_vector_matches_a_picture_where_there_is_no_better():
    pairs = matched([activation("s", 1.0, ())], [activation("t", 0.9, (4, 4))], 1)
    assert [(pair.student.name, pair.teacher.name) for pair in pairs] == [("s", "t")]
    ours, theirs = aligned(torch.ones(2, 3), torch.arange(24.0).reshape(2, 3, 2, 2))
    assert ours.shape == theirs.shape == (2, 3)
    torch.testing.assert_close(theirs[0], torch.tensor([1.5, 5.5, 9.5]))


def test_larger_pictures_are_averaged():
    ours, theirs = aligned(torch.arange(16.0).reshape(1, 1, 4, 4), torch.zeros(1, 5, 2, 2))
    assert theirs.shape == (1, 5, 2, 2)
    torch.testing.assert_close(ours, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))


def test_activations_of_a_graph_are_what_the_runtime_computes():
    model = models.cnn()
    module = to_torch(model)
    x = pictures()
    found = graph_activations(module, (x,))
    described = [(one.depth, one.channels, one.positions) for one in found]
    # Read by conv2, by the pool, by the flattening, and by the last layer.
    assert described == [(0.5, 8, (8, 8)), (1.0, 16, (8, 8)), (1.0, 16, (4, 4)), (1.0, 256, ())]

    tap = GraphTap(module, found)
    outputs, values = tap.run((x,))
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    for name in ("r1", "r2", "p", "f"):
        seen.graph.output.append(models.value(name, None))
    session = onnxruntime.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x.numpy()})
    for value, wanted in zip((*outputs, *values), expected, strict=True):
        np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_graph_tap_shares_its_parameters():
    module = to_torch(models.cnn())
    found = graph_activations(module, (pictures(),))
    tap = GraphTap(module, found[-1:])
    before = tap.run((pictures(),))[1][0]
    with torch.no_grad():
        module.get_parameter("conv1.weight").mul_(2)
    assert not torch.equal(tap.run((pictures(),))[1][0], before)


def test_activations_of_a_student():
    student = student_of("cnn", depth=3)
    found = student_activations(student, (pictures(),))
    described = [(one.channels, one.positions) for one in found]
    assert described == [(32, (8, 8)), (64, (8, 8)), (128, (4, 4)), (128, ())]
    assert [round(one.depth, 2) for one in found] == [0.33, 0.67, 1.0, 1.0]

    tap = StudentTap(student, [found[1], found[3]])
    outputs, (second, last) = tap.run((pictures(),))
    layers = student.backbone
    torch.testing.assert_close(second, layers[1](layers[0](pictures())))
    torch.testing.assert_close(last, layers(pictures()))
    torch.testing.assert_close(outputs[0], student(pictures()))
    tap.close()
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_channels_of_dense_layers_over_positions_are_last():
    teacher = Interface((TeacherInput("x", "float32", (7, 5)),), (TeacherOutput("y", torch.float32, (3,)),), {})
    student = fitted(ArchitectureStudent(name="transformer", depth=1), teacher).eval()
    x = torch.randn(2, 7, 5)
    found = student_activations(student, (x,))
    assert {(one.channels, one.positions) for one in found} == {(128, (7,)), (512, (7,)), (128, ())}
    wanted = next(one for one in found if one.name.endswith("narrow"))
    _, (value,) = StudentTap(student, [wanted]).run((x,))
    assert value.shape == (2, 512, 7)
