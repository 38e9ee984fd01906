"""Students against torchvision's networks, and their fit to teachers of many shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision.models
from onnx import helper
from torch import nn

from compression.distillation.interface import interface_of
from compression.distillation.spec import ArchitectureStudent
from compression.distillation.students import pictures
from compression.distillation.students.export import check, exported
from compression.distillation.students.fit import Interface, TeacherInput, TeacherOutput, fitted
from compression.distillation.students.network import Form, Head
from compression.errors import StepFailed
from compression.graph.macs import count_macs
from compression.graph.to_torch import to_torch
from tests.compression import models

PICTURES = [
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "squeezenet",
    "shufflenet_v2",
    "efficientnet_lite0",
]
TORCHVISION = {
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
    "squeezenet": torchvision.models.squeezenet1_1,
    "shufflenet_v2": torchvision.models.shufflenet_v2_x1_0,
}


def interface(*shape, outputs=(10,), dtype="float32", ending="none", tables=None):
    given = TeacherInput("image", dtype, shape)
    return Interface((given,), (TeacherOutput("scores", torch.float32, outputs, ending=ending),), tables or {})


def student(name, teacher, **options):
    torch.manual_seed(0)
    return fitted(ArchitectureStudent(name=name, **options), teacher).eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module, *inputs):
    """Multiply-accumulates of convolutions and dense layers for one sample, by hooks."""
    total = 0

    def hook(layer, _args, output):
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(hook)
        for layer in module.modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        module(*inputs)
    for one in hooks:
        one.remove()
    return total


def shapes_only(name, teacher, **options):
    """A student that computes no values."""
    with torch.device("meta"):
        return student(name, teacher, **options)


@pytest.mark.parametrize("name", TORCHVISION)
def test_published_networks_are_torchvisions(name):
    ours = shapes_only(name, interface(3, 224, 224, outputs=(1000,)))
    with torch.device("meta"):
        theirs = TORCHVISION[name]().eval()
    assert count(ours) == count(theirs)
    x = torch.zeros(1, 3, 224, 224, device="meta")
    # SqueezeNet's head is applied to every position there, and to their mean here; its first layer is not padded.
    bound = 0.25 if name == "squeezenet" else 0.01
    assert macs(ours, x) == pytest.approx(macs(theirs, x), rel=bound)


def test_efficientnet_lite0_has_the_published_size():
    assert count(shapes_only("efficientnet_lite0", interface(3, 224, 224, outputs=(1000,)))) == 4_652_008


def test_mobilenet_v2_computes_what_torchvision_computes():
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2(num_classes=10).eval()
    ours = student("mobilenet_v2", interface(3, 97, 97))
    values = [*theirs.parameters(), *theirs.buffers()]
    with torch.no_grad():
        for mine, value in zip([*ours.parameters(), *ours.buffers()], values, strict=True):
            assert mine.shape == value.shape
            mine.copy_(value)
        x = torch.randn(1, 3, 97, 97)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", [*PICTURES, "cnn", "mlp"])
def test_pictures_of_any_size(name):
    for shape in [(1, 8, 8), (1, 28, 28), (3, 64, 64), (3, 1, 5), (3, 224, 224)]:
        found = shapes_only(name, interface(*shape, outputs=(7,)), width=0.25)
        assert found(torch.zeros(2, *shape, device="meta")).shape == (2, 7)
    found = student(name, interface(1, 8, 8), width=0.25).train()
    assert bool(torch.isfinite(found(torch.randn(2, 1, 8, 8))).all())


@pytest.mark.parametrize("name", PICTURES)
def test_small_pictures_keep_positions_and_cost_less_than_large_ones(name):
    costs = []
    for side in (8, 28, 64, 224):
        ours = shapes_only(name, interface(3, side, side), width=0.5)
        sides = []
        last = next(module for module in ours.backbone if isinstance(module, nn.AdaptiveAvgPool2d))
        hook = last.register_forward_pre_hook(lambda _module, args, sides=sides: sides.append(args[0].shape[-1]))
        costs.append(macs(ours, torch.zeros(1, 3, side, side, device="meta")))
        hook.remove()
        # SqueezeNet pools without padding, which costs it a position.
        assert sides[0] in ((3, 4, 14) if name == "squeezenet" else (4, 7))
    assert max(costs) == costs[-1]
    assert costs[0] < costs[-1] / 3


def test_strides_are_left_out_from_the_front():
    with torch.device("meta"):
        networks = [pictures.mobilenet_v2(1, side, 1.0) for side in (28, 224)]
    found, native = (
        [layer.stride[0] for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] == 3]
        for network in networks
    )
    halving = [index for index, stride in enumerate(native) if stride == 2]
    assert [index for index, stride in enumerate(found) if stride == 2] == halving[2:]


def test_width_changes_the_cost():
    x = torch.zeros(1, 3, 64, 64, device="meta")
    for name in [*PICTURES, "cnn"]:
        narrow, usual, wide = (macs(shapes_only(name, interface(3, 64, 64), width=width), x) for width in (0.25, 1, 2))
        assert narrow < usual / 3 < wide / 6


def test_depth_is_counted_in_layers():
    four = student("cnn", interface(1, 28, 28), depth=4)
    assert sum(isinstance(layer, nn.Conv2d) for layer in four.modules()) == 4
    deep = student("mlp", interface(784), depth=3, width=0.25)
    assert [layer.out_features for layer in deep.modules() if isinstance(layer, nn.Linear)] == [64, 64, 64, 10]
    blocks = student("transformer", interface(16, 5), depth=3)
    assert len(blocks.backbone.blocks) == 3


def test_outputs_of_any_shape():
    for outputs in [(), (1,), (4, 3), (2, 3, 4)]:
        assert student("mlp", interface(784, outputs=outputs))(torch.zeros(2, 784)).shape == (2, *outputs)


@pytest.mark.parametrize(
    ("ending", "function"),
    [("softmax", lambda x: x.softmax(-1)), ("log_softmax", lambda x: x.log_softmax(-1)), ("sigmoid", torch.sigmoid)],
)
def test_endings(ending, function):
    found = student("mlp", interface(6, outputs=(4,), ending=ending))
    x = torch.randn(3, 6)
    torch.testing.assert_close(found(x), function(found.scores(x)[0]))
    form = Form((4,), ending=ending)
    scores = torch.randn(3, 4)
    torch.testing.assert_close(form.finish(form.scores(form.finish(scores))), form.finish(scores))


def test_channels_in_the_last_axis():
    found = student("cnn", interface(28, 28, 1))
    x = torch.randn(2, 28, 28, 1)
    assert found(x).shape == (2, 10)
    assert found.backbone[0].conv.in_channels == 1
    torch.testing.assert_close(found.heads[0](found.backbone(x.permute(0, 3, 1, 2))), found(x))


def test_bytes_are_taken_as_numbers():
    assert student("cnn", interface(3, 16, 16, dtype="uint8"))(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (
        2,
        10,
    )


def test_signals():
    assert student("cnn", interface(2, 100))(torch.zeros(3, 2, 100)).shape == (3, 10)


def test_several_inputs_go_into_dense_layers():
    given = (TeacherInput("a", "float32", (4,)), TeacherInput("b", "float32", (2, 3)))
    teacher = Interface(given, (TeacherOutput("y", torch.float32, (5,)),), {})
    found = student("mlp", teacher)
    a, b = torch.randn(2, 4), torch.randn(2, 2, 3)
    joined = torch.cat([a, b.flatten(1)], 1)
    torch.testing.assert_close(found(a, b), found.heads[0](found.backbone.layers(joined)))


def tokens(*extra):
    given = [TeacherInput("input_ids", "int64", (9,), frozenset({0}))]
    given += [TeacherInput(name, "int64", (9,), frozenset({0})) for name in extra]
    outputs = (
        TeacherOutput("last", torch.float32, (9, 12), frozenset({0})),
        TeacherOutput("pooled", torch.float32, (12,)),
    )
    return Interface(tuple(given), outputs, {"input_ids": 50, "token_type_ids": 3})


def test_tokens_with_a_mask():
    found = student("transformer", tokens("attention_mask", "token_type_ids"), width=0.25)
    ids, kinds = torch.randint(0, 50, (2, 9)), torch.randint(0, 3, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    last, pooled = found(ids, mask, kinds)
    assert last.shape == (2, 9, 12)
    assert pooled.shape == (2, 12)
    # What is masked makes no difference: the same without these positions, and with other tokens there.
    short, short_pooled = found(ids[1:, :5], mask[1:, :5], kinds[1:, :5])
    torch.testing.assert_close(last[1:, :5], short)
    torch.testing.assert_close(pooled[1:], short_pooled)
    nothing = found(ids, torch.zeros_like(mask), kinds)
    assert bool(torch.isfinite(nothing[0]).all())


def test_positions_matter():
    found = student("transformer", tokens())
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(found(ids)[1], found(ids.flip(1))[1], atol=1e-3)


def misfit(name, teacher):
    with pytest.raises(StepFailed) as caught:
        student(name, teacher)
    assert caught.value.code == "student_does_not_fit"
    return caught.value.message


def test_what_does_not_fit_is_said():
    two = Interface(
        (TeacherInput("a", "float32", (4,)), TeacherInput("b", "float32", (6,))),
        (TeacherOutput("y", torch.float32, (5,)),),
        {},
    )
    assert "the teacher has 2: 'a', 'b'; 'mlp' takes" in misfit("mobilenet_v2", two)
    assert "input 'image' is ['n', 784]; 'mlp' takes any fixed size" in misfit("cnn", interface(784))
    assert "input 'image' is ['n', 1, 8, 8]" in misfit("transformer", interface(1, 8, 8))
    assert "'transformer' can" in misfit("mlp", tokens())
    assert "has 120000" in misfit("mlp", interface(4, outputs=(300, 400)))
    open_output = Interface(
        (TeacherInput("x", "float32", (4,)),), (TeacherOutput("y", torch.float32, (3,), frozenset({0})),), {}
    )
    assert "'y' is open along axis 1" in misfit("mlp", open_output)
    whole = Interface((TeacherInput("x", "float32", (4,)),), (TeacherOutput("y", torch.int64, (3,)),), {})
    assert "'y' holds int64" in misfit("mlp", whole)
    five = Interface(tuple(TeacherInput(str(i), "float32", (1,)) for i in range(5)), whole.outputs, {})
    assert "takes 4 inputs at most" in misfit("mlp", five)


def test_a_head_in_units_is_the_same_once_folded():
    torch.manual_seed(0)
    head = Head(5, Form((3,)))
    outputs = torch.randn(100, 3) * torch.tensor([1000.0, 1.0, 0.0]) + torch.tensor([5.0, -7.0, 2.0])
    head.measure_in(outputs)
    x = torch.randn(4, 5)
    before = head(x)
    # The third output never changes: its mean is there from the start, and its unit is 1.
    torch.testing.assert_close(
        before,
        head.linear(x) * torch.tensor([outputs[:, 0].std(correction=0), outputs[:, 1].std(correction=0), 1.0])
        + outputs.mean(0),
    )
    head.fold()
    torch.testing.assert_close(
        nn.functional.linear(x, head.linear.weight, head.linear.bias), before, rtol=1e-4, atol=1e-3
    )


def with_ending(operator, axis=-1):
    model = models.mlp(features=6, hidden=8, classes=4)
    model.graph.node[-1].output[0] = "z"
    options = {} if operator == "Sigmoid" else {"axis": axis}
    model.graph.node.append(helper.make_node(operator, ["z"], ["logits"], "ending", **options))
    return model


@pytest.mark.parametrize(
    ("operator", "axis", "ending"),
    [
        ("Softmax", -1, "softmax"),
        ("Softmax", 1, "softmax"),
        ("Softmax", 0, "none"),
        ("LogSoftmax", -1, "log_softmax"),
        ("Sigmoid", None, "sigmoid"),
    ],
)
def test_interface_of_a_classifier(operator, axis, ending):
    model = with_ending(operator, axis)
    module = to_torch(model)
    x = torch.randn(2, 6)
    found = interface_of(model, module, (x,), (module(x),))
    assert found.inputs == (TeacherInput("x", "float32", (6,)),)
    assert found.outputs == (TeacherOutput("logits", torch.float32, (4,), ending=ending),)
    assert found.tables == {}


def test_interface_of_a_network_of_tokens():
    model = models.embedding()
    module = to_torch(model)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    found = interface_of(model, module, (ids,), (module(ids),))
    assert found.inputs == (TeacherInput("ids", "int64", (5,), frozenset({0})),)
    assert found.tables == {"ids": 50}


def test_outputs_without_samples_are_refused():
    model = models.make_model(
        [helper.make_node("ReduceSum", ["x"], ["y"], "sum", keepdims=1)],
        [models.value("x", ["n", 3])],
        [models.value("y", [1, 1])],
        {},
    )
    module = to_torch(model)
    x = torch.ones(2, 3)
    with pytest.raises(StepFailed, match="first axis is no batch") as caught:
        interface_of(model, module, (x,), (module(x),))
    assert caught.value.code == "student_does_not_fit"


def run(model, **inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def test_export_keeps_names_norms_and_metadata():
    teacher = models.cnn()
    teacher.metadata_props.append(onnx.StringStringEntryProto(key="classes", value="0-9"))
    # A student's own values could be called like the teacher's input and output.
    shape = Interface(
        (TeacherInput("backbone.0.conv.weight", "float32", (1, 8, 8)),),
        (TeacherOutput("relu", torch.float32, (10,)),),
        {},
    )
    network = student("cnn", shape, width=0.25)
    graph = exported(network, shape, teacher)
    onnx.checker.check_model(graph, full_check=True)
    assert [value.name for value in graph.graph.input] == ["backbone.0.conv.weight"]
    assert [value.name for value in graph.graph.output] == ["relu"]
    assert [axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim] == [0, 1, 8, 8]
    assert {entry.key: entry.value for entry in graph.metadata_props} == {"classes": "0-9"}
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("BatchNormalization") == operators.count("Conv") == 3
    weights = models.weights_of(graph)
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked") and name != "backbone.0.conv.weight":
            np.testing.assert_array_equal(weights[name], value.numpy())
    for samples in (1, 5):
        x = torch.randn(samples, 1, 8, 8)
        found = run(graph, **{"backbone.0.conv.weight": x})[0]
        np.testing.assert_allclose(found, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert check(network, graph, (torch.randn(4, 1, 8, 8),), shape) < 1e-5
    assert count_macs(graph) == macs(network, torch.zeros(1, 1, 8, 8))


def test_export_of_tokens_leaves_the_sequence_open():
    shape = tokens("attention_mask", "token_type_ids")
    network = student("transformer", shape, width=0.25, depth=1)
    graph = exported(network, shape, models.cnn())
    for length in (3, 20):
        inputs = (
            torch.randint(0, 50, (2, length)),
            torch.ones(2, length, dtype=torch.int64),
            torch.zeros(2, length).long(),
        )
        found = run(graph, input_ids=inputs[0], attention_mask=inputs[1], token_type_ids=inputs[2])
        for value, expected in zip(found, network(*inputs), strict=True):
            np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_graph_that_computes_something_else_is_refused():
    shape = interface(6, outputs=(4,))
    network = student("mlp", shape)
    graph = exported(network, shape, models.cnn())
    with torch.no_grad():
        network.heads[0].linear.bias.add_(1)
    with pytest.raises(StepFailed) as caught:
        check(network, graph, (torch.randn(2, 6),), shape)
    assert caught.value.code == "student_export_differs"
