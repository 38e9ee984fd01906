"""Whatever goes in comes out, bit by bit, and takes as little room as its entropy says."""

from __future__ import annotations

import hashlib
import lzma
import zlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from compression.coding import splice
from compression.coding.decode import File, decode
from compression.coding.encode import encode
from tests.compression import models
from tests.compression.coding import files

CODERS = ("rans", "huffman")


@pytest.mark.parametrize("coder", CODERS)
def test_every_element_type_bit_by_bit(coder):
    model = files.every_type(np.random.default_rng(0))
    encoded = encode(model, coder=coder)
    assert decode(encoded.data) == model
    assert len(encoded.data) < len(model) + 400  # noise is stored as it is


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(("density", "clusters"), [(0.002, 1), (0.03, 7), (0.03, None), (0.2, 40), (0.45, 7)])
def test_sparse_weights(coder, density, clusters):
    rng = np.random.default_rng(3)
    arrays = {
        "matrix": files.pruned(rng, (90, 130), density, clusters),
        "filters": files.pruned(rng, (24, 16, 3, 3), density, clusters),
        "vector": files.pruned(rng, (1, 900), density, clusters).reshape(-1),
        "tall": files.pruned(rng, (1200, 3), density, clusters),
    }
    model = files.arrays_file(**arrays)
    assert decode(encode(model, coder=coder).data) == model


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("zeros", [0.0, 0.7])
def test_values_shared_by_rows_or_columns(coder, zeros):
    rng = np.random.default_rng(4)
    books = rng.standard_normal((40, 16)).astype(np.float32)
    weights = np.take_along_axis(books, rng.integers(0, 16, (40, 300)), 1)
    weights[rng.random(weights.shape) < zeros] = 0
    weights[7] = books[7, 0]  # a row without zeros, and with one value
    for oriented in (weights, np.ascontiguousarray(weights.T)):
        model = files.arrays_file(w=oriented)
        encoded = encode(model, coder=coder)
        assert "codebooks" in encoded.streams[0].form
        assert decode(encoded.data) == model
        # Four bits for the number of a value, a table of 16 values of 32 bits for each row.
        assert 8 * encoded.streams[0].coded_bytes < 4.2 * weights.size + 40 * 17 * 33


@pytest.mark.parametrize("coder", CODERS)
def test_neighbours_and_signs_are_contexts(coder):
    weights = files.receptive(np.random.default_rng(5))
    for oriented in (weights, np.ascontiguousarray(weights.T)):
        model = files.arrays_file(w=oriented)
        encoded = encode(model, coder=coder)
        assert decode(encoded.data) == model
        # Independent places and independent signs would take this much.
        ones = np.count_nonzero(weights)
        share = ones / weights.size
        alone = -weights.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) + ones
        assert 8 * encoded.streams[0].coded_bytes < 0.7 * alone


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_array(data):
    kind = data.draw(st.sampled_from(["f4", "f2", "f8", "i1", "u1", "i2", "i4", "i8", "u2", "u4", "u8", "bool"]))
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=0, max_size=4)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    levels = data.draw(st.sampled_from([1, 2, 5, 300, 10**6]))
    zeros = data.draw(st.floats(0, 1))
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, shape)
    values = np.where(rng.random(shape) < zeros, 0, values)
    with np.errstate(over="ignore"):  # half precision ends at 65,504: beyond are infinities, which are numbers, too
        array = np.asarray(values * (0.37 if kind[0] == "f" else 1)).astype(kind)
    model = files.arrays_file(w=array)
    assert decode(encode(model, coder=data.draw(st.sampled_from(CODERS))).data) == model


@pytest.mark.parametrize("coder", CODERS)
def test_tensors_in_constants_subgraphs_and_typed_fields(coder):
    rng = np.random.default_rng(1)
    inner = numpy_helper.from_array(rng.standard_normal((8, 16)).astype(np.float32), "inner")
    typed = onnx.helper.make_tensor("typed", TensorProto.FLOAT, (40,), rng.standard_normal(40))
    assert not typed.raw_data
    branch = onnx.helper.make_graph([], "b", [], [models.value("inner", [8, 16])], [inner])
    condition = onnx.helper.make_node("If", ["c"], ["r"], then_branch=branch, else_branch=branch)
    constant = onnx.helper.make_node("Constant", [], ["k"], value=inner)
    graph = onnx.helper.make_graph([constant, condition], "g", [], [models.value("r", [8, 16])], [typed])
    model = onnx.helper.make_model(graph).SerializeToString()
    encoded = encode(model, coder=coder)
    assert [stream.raw_bytes for stream in encoded.streams] == [512, 512, 512]
    assert decode(encoded.data) == model


@pytest.mark.parametrize("name", ["cnn", "mlp", "embedding", "two_inputs"])
def test_names_shapes_and_types_are_those_of_onnx(name):
    model = getattr(models, name)()
    file = File(encode(model.SerializeToString()).data)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert file.tensors
    for tensor in file.tensors:
        assert tensor.dims == tuple(stored[tensor.name].dims)
        assert tensor.data_type == stored[tensor.name].data_type
    assert file.sha256 == hashlib.sha256(model.SerializeToString()).digest()


def test_one_tensor_is_read_from_its_own_bytes():
    model = models.cnn()
    data = bytearray(encode(model.SerializeToString()).data)
    whole = File(bytes(data))
    names = [tensor.name for tensor in whole.tensors]
    index = names.index("conv2.weight")
    (expected,) = whole.read([index])
    assert expected == models.weights_of(model)["conv2.weight"].tobytes()
    # The others may be damaged: they are not looked at.
    start, end = whole._head.streams[-1]
    data[start:end] = bytes(end - start)
    assert File(bytes(data)).read([index]) == [expected]


def test_a_large_tensor_is_within_one_percent_of_its_entropy():
    rng = np.random.default_rng(0)
    weights = np.clip(np.rint(rng.standard_normal((512, 800)) * 20), -127, 127).astype(np.int8)
    encoded = encode(files.arrays_file(w=weights))
    counts = np.unique(weights, return_counts=True)[1]
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum()) / 8
    assert entropy < len(encoded.data) < 1.01 * entropy + 256
    # Where rows and columns differ in scale, less than that: it is the conditional entropy that bounds it.
    scales = np.exp(rng.standard_normal((1000, 1)) / 2) * np.exp(rng.standard_normal((1, 800)) / 2)
    weights = np.clip(np.rint(rng.standard_normal((1000, 800)) * 5 * scales), -127, 127).astype(np.int8)
    encoded = encode(files.arrays_file(w=weights))
    counts = np.unique(weights, return_counts=True)[1]
    assert len(encoded.data) < 0.95 * float(-(counts * np.log2(counts / counts.sum())).sum()) / 8
    bound = encoded.streams[0].entropy_bits / 8
    assert bound < len(encoded.data) < 1.01 * bound + 256


def test_smaller_than_general_coders():
    rng = np.random.default_rng(2)
    tensors = {
        "sparse": files.pruned(rng, (300, 400), 0.03, 7),
        "clustered": rng.choice(rng.standard_normal(16).astype(np.float32), (200, 200)),
        "normal": rng.standard_normal((200, 100)).astype(np.float32),
        "quantized": np.clip(np.rint(rng.standard_normal((300, 200)) * 25), -127, 127).astype(np.int8),
        "half": rng.standard_normal((200, 100)).astype(np.float16),
        "wide": np.rint(rng.standard_normal(4000) * 1000).astype(np.int32),
    }
    for name, array in tensors.items():
        model = files.arrays_file(w=array)
        ours = len(encode(model).data)
        assert ours < len(zlib.compress(model, 9)), name
        assert ours < len(lzma.compress(model, preset=9)), name


def test_huffman_is_never_smaller_than_rans_on_skewed_symbols():
    rng = np.random.default_rng(0)
    book = np.array([0.0, 0.5, -1.0], np.float32)
    model = files.arrays_file(w=rng.choice(book, (300, 300), p=[0.45, 0.5, 0.05]))
    assert len(encode(model, coder="rans").data) < len(encode(model, coder="huffman").data)


def test_splicing_gives_the_file_back():
    model = models.cnn().SerializeToString()
    holes = splice.find_holes(model, cut=False)
    graph, data = splice.without_data(model, holes)
    assert splice.find_holes(graph, cut=True) == holes
    assert splice.with_data(graph, holes, data) == model
    assert len(graph) + sum(hole.size for hole in holes) == len(model)
