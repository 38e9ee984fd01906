"""ONNX and `.levity` files that lie about sizes, reach outside, or grow."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.coding import container
from compression.coding.bits import varint
from compression.coding.encode import encode
from tests.compression import models
from tests.compression.models import value
from tests.fuzz import seeds
from tests.hostile.case import Case, Lure, codes, constant

Change = Callable[[onnx.ModelProto], Any]
_INVALID = codes("invalid_model")
_OUTSIDE = codes("external_data_unsafe")


def cases() -> list[Case]:
    """All of them."""
    return [*_external(), *_declared(), *_grown(), *_shaped(), *_run(), *_levity(), *_lying_names()]


def _changed(change: Change, model: Callable[[], onnx.ModelProto] = models.cnn) -> bytes:
    made = model()
    change(made)
    return made.SerializeToString()


def _refused(name: str, wanted: frozenset[str], change: Change, model: Any = models.cnn) -> Case:
    return Case(f"onnx: {name}", wanted, lambda _: _changed(change, model))


# Reaching outside


def _pointing(location: str, **entries: str) -> bytes:
    """A model whose first weight lies in a file of this name."""
    model = models.cnn()
    _point(model.graph.initializer[0], location, **entries)
    return model.SerializeToString()


def _point(tensor: TensorProto, location: str, **entries: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=text)


def _external() -> list[Case]:
    paths: dict[str, Callable[[Lure], str]] = {
        "absolute path": lambda lure: str(lure.canary),
        "path upwards (CVE-2022-25882)": lambda lure: "../" * 30 + str(lure.canary)[1:],
        "path through a folder (CVE-2024-27318)": lambda lure: "a/../../../../../.." + str(lure.canary),
        "path with backslashes": lambda lure: str(lure.canary).replace("/", "\\"),
        "URL": lambda lure: f"http://127.0.0.1:{lure.port}/",
        "file URL": lambda lure: f"file://{lure.canary}",
        "folder": lambda _: ".",
        "parent": lambda _: "..",
        "no name": lambda _: "",
        "own environment": lambda _: "/proc/self/environ",
        "a descriptor": lambda _: "/proc/self/fd/0",
        "a device without end": lambda _: "/dev/zero",
    }
    data = {"weights.bin": constant(bytes(288))}
    return [
        *(
            Case(f"external data: {name}", _OUTSIDE, lambda lure, path=path: _pointing(path(lure)))
            for name, path in paths.items()
        ),
        Case("external data: name with NUL", _OUTSIDE, constant(_pointing("weights.bin\0../x"))),
        Case("external data: never uploaded", codes("external_data_missing"), constant(_pointing("weights.bin"))),
        Case("external data: name of 100,000 letters", _OUTSIDE, constant(_pointing("a" * 100_000))),
        *(
            Case(
                f"external data: {name}",
                codes("external_data_invalid"),
                constant(_pointing("weights.bin", **entries)),
                beside=data,
            )
            for name, entries in {
                "offset beyond the end": {"offset": "288"},
                "offset of 2^64": {"offset": str(2**64)},
                "negative offset": {"offset": "-8"},
                "length beyond the end": {"length": str(2**40)},
                "number of a million digits": {"offset": "1" * 9_999},
            }.items()
        ),
        Case(
            "external data: 64 GiB in 288 bytes",
            codes("external_data_invalid", "model_too_large"),
            lambda _: _changed(_huge_external),
            beside=data,
        ),
        Case(
            "external data: in a branch of an If",
            _OUTSIDE,
            lambda lure: _changed(
                lambda model: _point(_weight_of_branch(model), str(lure.canary), offset="0"), seeds.branches
            ),
        ),
        Case(
            "external data: in an attribute",
            _OUTSIDE,
            lambda lure: _changed(
                lambda model: _point(model.graph.node[0].attribute[0].t, str(lure.canary)), seeds.constants
            ),
        ),
        Case(
            "external data: in the graph of training, which is dropped",
            codes(),
            lambda lure: _changed(lambda model: _training(model, lure)),
            job=codes("succeeded"),
        ),
    ]


def _huge_external(model: onnx.ModelProto) -> None:
    _point(model.graph.initializer[0], "weights.bin")
    model.graph.initializer[0].dims[:] = [2**17, 2**17]


def _weight_of_branch(model: onnx.ModelProto) -> TensorProto:
    branch = next(attribute.g for attribute in model.graph.node[0].attribute if attribute.name == "else_branch")
    weight = branch.initializer.add()
    weight.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "inner"))
    return weight


def _training(model: onnx.ModelProto, lure: Lure) -> None:
    info = model.training_info.add()
    info.algorithm.CopyFrom(model.graph)
    _point(info.algorithm.initializer[0], str(lure.canary))


# Declaring what is not there


def _declared() -> list[Case]:
    def dims(*lengths: int) -> Change:
        def change(model: onnx.ModelProto) -> None:
            model.graph.initializer[0].dims[:] = lengths

        return change

    def typed(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.dims[:] = [2**34]

    def segment(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].segment.begin = 2**40

    def kind(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_type = 999

    def sparse(model: onnx.ModelProto) -> None:
        model.graph.sparse_initializer[0].dims[:] = [2**40]

    def indices(model: onnx.ModelProto) -> None:
        model.graph.sparse_initializer[0].indices.raw_data = np.array([2**62, -1], np.int64).tobytes()

    def input_type(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = 77

    return [
        _refused("64 GiB declared", _INVALID, dims(2**34)),
        _refused("64 GiB declared without data", _INVALID, typed),
        _refused("negative length", _INVALID, dims(-8, 1, 3, 3)),
        _refused("two negative lengths", _INVALID, dims(-8, -1, 3, 3)),
        _refused("product of lengths beyond 2^64", _INVALID, dims(2**62, 2**62, 2**62)),
        _refused("product of lengths that wraps to the right one", _INVALID, dims(2**63 - 1, 2**63 - 1, 72)),
        _refused("segment", _INVALID, segment),
        _refused("unknown element type", _INVALID, kind),
        _refused("input of an unknown element type", _INVALID, input_type),
        _refused("sparse tensor of 4 TiB", codes("invalid_model", "model_too_large"), sparse, seeds.sparse),
        _refused("indices outside a sparse tensor", _INVALID, indices, seeds.sparse),
    ]


# Growing


def _field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def _model_of(graph: bytes, more: bytes = b"") -> bytes:
    return b"\x08\x0a" + _field(8, b"\x10\x15") + _field(7, graph) + more


def _empty(number: int, count: int) -> bytes:
    return (varint(number << 3 | 2) + b"\0") * count


def nested(depth: int) -> bytes:
    """A graph in a graph, this many times."""
    graph = _field(1, _field(4, b"Identity"))
    for _ in range(depth):
        attribute = _field(1, b"body") + varint(20 << 3) + varint(5) + _field(6, graph)
        graph = _field(1, _field(4, b"Loop") + _field(5, attribute))
    return _model_of(graph)


def exponential(levels: int) -> bytes:
    """Functions of which each calls the one before it twice."""
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("own", 1)]
    made = []
    for level in range(levels):
        inner, domain = (f"F{level - 1}", "own") if level else ("Relu", "")
        body = [
            helper.make_node(inner, ["a"], ["m"], domain=domain),
            helper.make_node(inner, ["m"], ["b"], domain=domain),
        ]
        made.append(helper.make_function("own", f"F{level}", ["a"], ["b"], body, opsets))
    return _calling(made, f"F{levels - 1}", 1)


def _calling(functions: list[onnx.FunctionProto], name: str, calls: int) -> bytes:
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("own", 1)]
    names = ["x", *(f"v{index}" for index in range(calls - 1)), "y"]
    nodes = [helper.make_node(name, [a], [b], domain="own") for a, b in itertools.pairwise(names)]
    graph = helper.make_graph(nodes, "g", [value("x", [2])], [value("y", [2])])
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=models.IR_VERSION)
    return model.SerializeToString()


def _circle(*names: str) -> bytes:
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("own", 1)]
    made = [
        helper.make_function("own", name, ["a"], ["b"], [helper.make_node(called, ["a"], ["b"], domain="own")], opsets)
        for name, called in zip(names, (*names[1:], names[0]), strict=True)
    ]
    return _calling(made, names[0], 1)


def heavy_function(calls: int = 2_000) -> bytes:
    """4 MiB of weights inside a function that is called often: 8 GiB where every call gets its own copy."""
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("own", 1)]
    weight = numpy_helper.from_array(np.ones(2**20, np.float32), "w")
    body = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["a", "s"], ["b"]),
    ]
    return _calling([helper.make_function("own", "Heavy", ["a"], ["b"], body, opsets)], "Heavy", calls)


def _grown() -> list[Case]:
    many = codes("too_many_nodes")
    branch = _field(1, b"then_branch") + varint(20 << 3) + varint(5)
    hidden = _field(1, _field(4, b"If") + _field(5, branch + _field(6, _empty(1, 13_000_000))))
    one = _field(1, _field(4, b"Relu"))
    named = {
        "300,000 nodes": (many, _model_of(_empty(1, 300_000))),
        "300,000 tensors": (codes("too_many_tensors"), _model_of(_empty(5, 300_000))),
        "13 million nodes in a branch": (many, _model_of(hidden)),
        "13 million value infos": (many, _model_of(one + _empty(13, 13_000_000))),
        "13 million entries of metadata": (many, _model_of(one, _empty(14, 13_000_000))),
        "13 million functions": (many, _model_of(one, _empty(25, 13_000_000))),
        "graphs 20 deep": (codes("subgraphs_too_deep"), nested(20)),
        "graphs 5,000 deep": (codes("not_onnx", "subgraphs_too_deep"), nested(5_000)),
        "functions that double 40 times": (many, exponential(40)),
        "function with 4 MiB called 2,000 times": (codes("model_too_large"), heavy_function()),
        "function that calls itself": (_INVALID, _circle("F")),
        "functions in a circle": (_INVALID, _circle("F", "G", "H")),
        "file of zeros": (codes("not_onnx"), bytes(1 << 20)),
        "file of ones": (codes("not_onnx"), b"\xff" * (1 << 20)),
    }
    return [Case(f"onnx: {name}", wanted, constant(data)) for name, (wanted, data) in named.items()]


# Shapes, names and operators


def _shaped() -> list[Case]:
    def domain(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.evil"
        model.opset_import.add(domain="com.evil", version=1)

    def shadow(model: onnx.ModelProto) -> None:
        function = helper.make_function(
            "", "Relu", ["a"], ["b"], [helper.make_node("Launch", ["a"], ["b"], domain="com.evil")], model.opset_import
        )
        model.functions.append(function)

    def opset(version: int) -> Change:
        def change(model: onnx.ModelProto) -> None:
            model.opset_import[0].version = version

        return change

    def circle(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = model.graph.node[-1].output[0]

    def twice(model: onnx.ModelProto) -> None:
        model.graph.node[1].output[0] = model.graph.node[0].output[0]

    def ir(model: onnx.ModelProto) -> None:
        model.ir_version = 2**62

    def filled(model: onnx.ModelProto) -> None:
        lengths = numpy_helper.from_array(np.array([2**17, 2**17], np.int64), "lengths")
        model.graph.initializer.append(lengths)
        model.graph.node.append(helper.make_node("ConstantOfShape", ["lengths"], ["filled"]))
        model.graph.output.append(value("filled", [2**17, 2**17]))

    def text(old: bytes, new: bytes) -> Callable[[Lure], bytes]:
        return lambda _: models.cnn().SerializeToString().replace(old, new)

    refused = [
        _refused("operator of its own", codes("operator_domain_not_allowed"), domain),
        _refused("operator of its own inside a function named Relu", codes("operator_domain_not_allowed"), shadow),
        _refused("operator set 9,999", _INVALID, opset(9_999)),
        _refused("operator set -1", _INVALID, opset(-1)),
        _refused("IR version 2^62", _INVALID, ir),
        _refused("nodes in a circle", _INVALID, circle),
        _refused("value defined twice", _INVALID, twice),
        _refused("activation of 64 GiB", codes("model_too_large"), filled),
        Case("onnx: name that is no UTF-8", codes("invalid_model", "not_onnx"), text(b"conv1", b"co\xff\xfe1")),
        Case("onnx: name with NUL", _INVALID, text(b"conv1", b"con\x001")),
    ]
    markup = Case(
        "onnx: markup as a name",
        codes(),
        lambda _: _changed(_marked),
        job=codes("succeeded"),
    )
    return [*refused, markup]


MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def _marked(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = f"{node.name}{MARKUP}"
    model.producer_name = MARKUP


# Doing harm when run


def _run() -> list[Case]:
    failed = codes("verification_failed", "out_of_memory", "time_limit_exceeded")
    return [
        Case("run: a loop without end", codes(), lambda _: _weighty(_endless()), job=failed),
        Case("run: 64 GiB of zeros made while it runs", codes(), lambda _: _weighty(_expanding()), job=failed),
        Case("run: a cache of another provider, by path", codes(), lambda lure: _weighty(_cached(lure)), job=failed),
    ]


def _weighty(data: bytes) -> bytes:
    """The model with a layer beside it that a step can do something to, so that both are run."""
    model = onnx.ModelProto.FromString(data)
    weight = np.eye(16, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "beside.weight"))
    model.graph.node.append(helper.make_node("MatMul", ["beside", "beside.weight"], ["aside"], "beside"))
    model.graph.input.append(value("beside", [1, 16]))
    model.graph.output.append(value("aside", [1, 16]))
    return model.SerializeToString()


def _endless() -> bytes:
    model = seeds.loop()
    del model.graph.input[1]
    model.graph.initializer.append(numpy_helper.from_array(np.int64(2**62), "n"))
    return model.SerializeToString()


def _expanding() -> bytes:
    """The length is computed, so that nothing knows it before."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Mul", ["s", "zero"], ["none"]),
        helper.make_node("Cast", ["none"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole", "length"], ["lengths"]),
        helper.make_node("ConstantOfShape", ["lengths"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["y"], keepdims=0),
    ]
    weights = {"zero": np.float32(0), "length": np.array([2**34], np.int64)}
    return models.make_model(nodes, [value("x", [2])], [value("y", [])], weights).SerializeToString()


def _cached(lure: Lure) -> bytes:
    """EPContext names a file that an execution provider would load."""
    node = helper.make_node(
        "EPContext", ["x"], ["y"], "cached", domain="com.microsoft", embed_mode=0, ep_cache_context=str(lure.canary)
    )
    model = models.make_model(
        [node], [value("x", [2])], [value("y", [2])], {"w": np.ones((8, 8), np.float32)}, domains=["com.microsoft"]
    )
    return model.SerializeToString()


# .levity


def forged(size: int | None = None, graph_size: int | None = None, streams: int | None = None) -> bytes:
    """A `.levity` file whose head says other sizes, with a checksum that is right."""
    data = encode(models.cnn().SerializeToString()).data
    head = container.read_head(memoryview(data), 2**31)
    parts = [data[start:end] for start, end in (head.graph, head.tables, *head.streams)]
    numbers = [
        head.size if size is None else size,
        head.graph_size if graph_size is None else graph_size,
        len(parts[0]),
        len(parts[1]),
        len(parts) - 2 if streams is None else streams,
        *map(len, parts[2:]),
    ]
    front = data[: len(container.MAGIC) + 2] + head.sha256 + b"".join(map(varint, numbers))
    return b"".join(part + zlib.crc32(part).to_bytes(4, "little") for part in (front, *parts))


def _levity() -> list[Case]:
    damaged = codes("levity_corrupted", "levity_truncated", "model_too_large")
    named = {
        "says that it unpacks to 2^62 bytes": forged(size=2**62),
        "says that it unpacks to 2 GiB": forged(size=2**31 - 2**21),
        "says that its graph has 2 GiB": forged(size=2**31 - 2**21, graph_size=2**31 - 2**22),
        "says that it has 2^40 streams": forged(streams=2**40),
        "says that it has no streams": forged(streams=0),
        "cut": forged()[:-100],
    }
    return [
        *(Case(f"levity: {name}", damaged, constant(data), filename="m.levity") for name, data in named.items()),
        Case(
            "levity: holds a model that reaches outside",
            _OUTSIDE,
            lambda lure: encode(_pointing(str(lure.canary))).data,
            filename="m.levity",
        ),
        Case(
            "levity: holds a .levity file",
            codes("levity_corrupted", "not_onnx"),
            constant(_twice_coded()),
            filename="m.levity",
        ),
    ]


def _twice_coded() -> bytes:
    inner = encode(models.cnn().SerializeToString()).data
    outer = encode(onnx.ModelProto(doc_string="x").SerializeToString()).data
    return outer + inner


def _lying_names() -> list[Case]:
    harmless = lambda _: models.cnn().SerializeToString()  # noqa: E731 - a table of makers
    names = ("model.pt", "../../../etc/passwd", "a" * 255, "model.onnx;reboot", "\u202egnp.onnx", "$(reboot)", "NUL")
    return [Case(f"name: {name[:20]!r} of a sound model", codes(), harmless, filename=name) for name in names]
