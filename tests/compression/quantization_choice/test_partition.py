"""Partitions against sums worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from compression.context import Context
from compression.graph import shapes
from compression.quantization.choice import conversions, partition
from compression.quantization.choice.conversions import Conversions, Line
from compression.quantization.choice.partition import Value
from compression.quantization.static import calibrate
from compression.spec import QuantizeStatic
from tests.compression.models import make_model, value, weight
from tests.compression.quantizing import dataset

# Every conversion of ten elements costs 1, and twice as much where channels move.
TEN = Conversions(quantize=Line(0, 0.1), dequantize=Line(0, 0.1), transpose=Line(0, 0.1))


def chain(*names, rank=2):
    """x -> first -> second -> … -> output, ten elements each."""
    values = [Value("x", None, (names[0],), 10, rank, is_output=False)]
    for name, reader in zip(names, (*names[1:], None), strict=True):
        readers = () if reader is None else (reader,)
        values.append(Value(f"of {name}", name, readers, 10, rank, is_output=reader is None))
    return values


def cheapest(values, seconds, *, grouped=None, integer=None, scale=1.0):
    grouped = grouped or [[name] for name in seconds]
    return partition.cheapest(values, grouped, integer or set(seconds), seconds, TEN, scale=scale)


def test_integers_must_gain_more_than_both_conversions():
    assert cheapest(chain("a"), {"a": (3.1, 1.0)}) == {"a"}
    assert cheapest(chain("a"), {"a": (2.9, 1.0)}) == set()


def test_pictures_pay_for_moving_their_channels_too():
    assert cheapest(chain("a", rank=4), {"a": (4.9, 1.0)}) == set()
    assert cheapest(chain("a", rank=4), {"a": (5.1, 1.0)}) == {"a"}


def test_a_node_that_loses_a_little_is_kept_to_save_conversions_around_it():
    seconds = {"a": (5.0, 1.0), "b": (1.0, 2.5), "c": (5.0, 1.0)}
    assert cheapest(chain("a", "b", "c"), seconds) == {"a", "b", "c"}
    seconds["b"] = (1.0, 3.5)
    assert cheapest(chain("a", "b", "c"), seconds) == {"a", "c"}
    assert cheapest(chain("a", "b", "c"), seconds, scale=1.5) == {"a", "b", "c"}


def test_a_value_is_quantized_once_for_all_readers_and_dequantized_for_each():
    def fan(producer_in_integers):
        flows = [
            Value("x", None, ("a",), 0, 2, is_output=False),
            Value("m", "a", ("b", "c"), 10, 2, is_output=False),
            Value("y", "b", (), 0, 2, is_output=True),
            Value("z", "c", (), 0, 2, is_output=True),
        ]
        able = {"a"} if producer_in_integers else {"b", "c"}
        return flows, able

    # In float, a saves 1.5 and b and c each read a dequantized value: 2.
    flows, able = fan(producer_in_integers=True)
    assert cheapest(flows, {"a": (1.5, 0), "b": (1, 0), "c": (1, 0)}, integer=able) == set()
    assert cheapest(flows, {"a": (2.5, 0), "b": (1, 0), "c": (1, 0)}, integer=able) == {"a"}
    # Two readers that save 0.6 each pay one quantization together.
    flows, able = fan(producer_in_integers=False)
    assert cheapest(flows, {"a": (0, 9), "b": (0.6, 0), "c": (0.6, 0)}, integer=able) == {"b", "c"}


def test_nodes_without_an_integer_form_stay_float_and_groups_stay_together():
    seconds = {"a": (5.0, 0.0), "b": (9.0, 0.0)}
    assert cheapest(chain("a", "b"), seconds, integer={"a"}) == {"a"}
    grouped = [["a", "b"]]
    assert cheapest(chain("a", "b"), {"a": (1.0, 9.0), "b": (9.9, 0.0)}, grouped=grouped) == set()
    assert cheapest(chain("a", "b"), {"a": (1.0, 9.0), "b": (10.1, 0.0)}, grouped=grouped) == {"a", "b"}


@pytest.fixture
def residual(tmp_path):
    """x -> conv1 -> relu1 -> conv2 -> + x' -> relu2, where x' is relu1's output: a calibrated block."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["s"], "sum"),
        helper.make_node("Relu", ["s"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["c3"], ["y"], "tanh"),
    ]
    weights = {f"w{place}": weight(rng, 8, 8, 3, 3) for place in (1, 2, 3)}
    model = make_model(nodes, [value("x", ["n", 8, 6, 6])], [value("y", ["n", 8, 6, 6])], weights)
    data = dataset(tmp_path, x=rng.standard_normal((4, 8, 6, 6)).astype(np.float32))
    return calibrate(model, QuantizeStatic(), Context(workdir=tmp_path, threads=1), data)


def test_values_know_their_readers_and_sizes(residual):
    known = shapes.infer(residual.graph, inputs={"x": (2, 8, 6, 6)})
    found = {one.name: one for one in partition.values(residual.graph, known)}
    assert found["x"] == Value("x", None, ("conv1",), 2 * 8 * 36, 4, is_output=False)
    assert found["r1"].consumers == ("conv2", "sum")
    assert found["r1"].producer == "relu1"
    assert found["y"].is_output
    assert set(found) == {"x", "c1", "r1", "c2", "s", "r2", "c3", "y"}


def test_what_one_kernel_computes_is_decided_about_as_one(residual):
    flows = partition.values(residual.graph, shapes.infer(residual.graph))
    integer = residual.plan().integer
    # As ONNX Runtime does it: the sum and its activation are part of the second convolution's float kernel.
    found = partition.groups(residual.anatomy, integer, flows, {"relu1", "conv2", "conv3", "tanh"})
    assert found == [["conv1", "relu1"], ["conv2", "sum", "relu2"], ["conv3"], ["tanh"]]


def test_conversions_are_timed_on_this_machine(tmp_path):
    costs = conversions.measure(Context(workdir=tmp_path, threads=1))
    small, large = costs.into_integers(1_000, 2), costs.into_integers(1_000_000, 2)
    assert 0 <= small < large
    assert costs.into_float(1_000_000, 4) > costs.into_float(1_000_000, 2) > 0
