"""Sound files, from which others are made by damaging them."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from compression.coding.encode import encode
from tests.compression import models
from tests.compression.coding import files
from tests.compression.models import make_model, value

PICTURES = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
LARGEST_SEED = 40_000


def onnx_files() -> list[bytes]:
    """Networks of each kind of part that the format has."""
    return [
        model.SerializeToString()
        for model in (
            models.cnn(),
            models.mlp(features=8, hidden=6, classes=3),
            models.embedding(),
            models.two_inputs(),
            branches(),
            loop(),
            functions(),
            external(),
            sparse(),
            constants(),
        )
    ]


def branches() -> onnx.ModelProto:
    """An If with a network in each branch, one of them with an If of its own."""

    def graph(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [value(output, [2])])

    inner = [
        helper.make_node(
            "If",
            ["c"],
            ["a"],
            then_branch=graph("t2", [helper.make_node("Relu", ["x"], ["r"])], "r"),
            else_branch=graph("e2", [helper.make_node("Identity", ["w"], ["i"])], "i"),
        )
    ]
    then = graph("t", inner, "a")
    other = graph("e", [helper.make_node("Add", ["x", "w"], ["b"])], "b")
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    inputs = [value("x", [2]), value("c", [], TensorProto.BOOL)]
    return make_model([node], inputs, [value("y", [2])], {"w": np.ones(2, np.float32)})


def loop() -> onnx.ModelProto:
    """A Loop over a body with a weight of its own."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Add", ["state", "step"], ["after"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go_on", [], TensorProto.BOOL), value("state", [2])],
        [value("still", [], TensorProto.BOOL), value("after", [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "step")],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    inputs = [value("x", [2]), value("n", [], TensorProto.INT64)]
    return make_model([node], inputs, [value("y", [2])], {})


def functions() -> onnx.ModelProto:
    """Functions that call each other."""
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("own", 1)]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets)
    body = [
        helper.make_node("Twice", ["a"], ["m"], domain="own"),
        helper.make_node("Twice", ["m"], ["b"], domain="own"),
    ]
    four = helper.make_function("own", "Four", ["a"], ["b"], body, opsets)
    graph = helper.make_graph(
        [helper.make_node("Four", ["x"], ["y"], domain="own")], "g", [value("x", [2])], [value("y", [2])]
    )
    return helper.make_model(graph, functions=[twice, four], opset_imports=opsets, ir_version=models.IR_VERSION)


def external() -> onnx.ModelProto:
    """Weights in `model.data`, which has 256 bytes."""
    model = models.mlp(features=4, hidden=4, classes=2)
    offset = 0
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "model.data"), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=text)
        offset += size
    return model


def sparse() -> onnx.ModelProto:
    """A weight of which two elements are stored."""
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 3], np.int64), "indices")
    model = make_model(
        [helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [4]), value("w", [4])], [value("y", [4])], {}
    )
    del model.graph.input[1]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return model


def constants() -> onnx.ModelProto:
    """Weights in nodes, text among them, and a quantized layer."""
    weight = numpy_helper.from_array(np.ones((2, 3), np.int8), "q")
    nodes = [
        helper.make_node("Constant", [], ["q"], value=weight),
        helper.make_node("Constant", [], ["scale"], value_float=0.5),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.int8(0), "z")),
        helper.make_node("Constant", [], ["shape"], value_ints=[1, -1]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    return make_model(nodes, [value("x", ["n", 2])], [value("y", [1, "k"])], {})


def node_tests() -> list[bytes]:
    """The onnx package's small models of every operator. Collecting them takes a minute."""
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"):
        cases = [case.model for case in collect_testcases(None) if case.model is not None]
    return [model.SerializeToString() for model in cases if model.ByteSize() <= LARGEST_SEED]


def levity_files() -> list[bytes]:
    """Every form of tensor, by both coders."""
    rng = np.random.default_rng(0)
    onnx_models = (
        files.arrays_file(
            sparse=files.pruned(rng, (40, 50), 0.05, 7),
            near=files.receptive(rng, 20, 12),
            quantized=np.clip(np.rint(rng.standard_normal((30, 40)) * 25), -127, 127).astype(np.int8),
            plain=rng.standard_normal((12, 20)).astype(np.float32),
        ),
        files.every_type(rng),
        models.cnn().SerializeToString(),
    )
    return [encode(model, coder=coder).data for model in onnx_models for coder in ("rans", "huffman")]


def arrays() -> dict[str, np.ndarray]:
    """A dataset of six samples."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((6, 1, 4, 4)).astype(np.float32),
        "mask": np.ones((6, 3), np.int64),
        "labels": np.arange(6),
        "targets": rng.random((6, 2)),
    }


def picture(kind: str, size: tuple[int, int] = (9, 7)) -> bytes:
    """A small picture in this format."""
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def zip_of(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these members."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An array as a `.npy` file."""
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=True)
    return content.getvalue()


def state_dict() -> bytes:
    """What `torch.save` writes of a layer's weights."""
    import torch

    torch.manual_seed(0)
    content = io.BytesIO()
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).state_dict(), content)
    return content.getvalue()


def weights() -> dict[str, np.ndarray]:
    """A layer's weights by name."""
    rng = np.random.default_rng(0)
    return {"0.weight": rng.random((3, 4)).astype(np.float32), "0.bias": np.zeros(3, np.float32)}
