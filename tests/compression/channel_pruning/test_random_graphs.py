"""Random small graphs: the result is legal, runs, has the same outputs' shapes and equals the zeroed original."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from compression.errors import StepFailed
from compression.graph.parameters import count_parameters
from tests.compression import models
from tests.compression.channel_pruning.oracle import run, zeroed_and_pruned

SIZE = 6


class Builder:
    """A graph that grows by layers that hypothesis draws; every value is (2, channels, 6, 6)."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights, self.values = [], {}, [("x", 3)]

    def add(self, kind, inputs, channels, **attributes):
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"node_{name}", **attributes))
        if channels:
            self.values.append((name, channels))
        return name

    def weight(self, *shape):
        name = f"w{len(self.weights)}"
        scale = np.sqrt(max(1, int(np.prod(shape[1:]))))
        self.weights[name] = (self.rng.standard_normal(shape) / scale).astype(np.float32)
        return name

    def integers(self, *values):
        name = f"i{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def conv(self, source, channels, group=1):
        name, wide = source
        weight = self.weight(channels, wide // group, 3, 3)
        return self.add("Conv", [name, weight, self.weight(channels)], channels, pads=[1, 1, 1, 1], group=group)

    def norm(self, source):
        name, wide = source
        vectors = [self.weight(wide) for _ in range(3)]
        self.weights[variance := f"w{len(self.weights)}"] = self.rng.uniform(0.5, 2, wide).astype(np.float32)
        return self.add("BatchNormalization", [name, *vectors, variance], wide)

    def join(self, left, right):
        if left[1] == right[1]:
            return self.add("Add" if self.rng.random() < 0.7 else "Mul", [left[0], right[0]], left[1])
        return self.add("Concat", [left[0], right[0]], left[1] + right[1], axis=1)

    def halves(self, source):
        name, wide = source
        if wide < 4:
            return
        cut = int(self.rng.integers(1, wide))
        first, second = f"{name}.a{len(self.nodes)}", f"{name}.b{len(self.nodes)}"
        sizes = self.integers(cut, wide - cut)
        self.nodes.append(helper.make_node("Split", [name, sizes], [first, second], f"split{len(self.nodes)}", axis=1))
        self.values += [(first, cut), (second, wide - cut)]

    def cut(self, source):
        name, wide = source
        start = int(self.rng.integers(0, wide))
        stop = int(self.rng.integers(start + 1, wide + 1))
        bounds = [self.integers(start), self.integers(stop if self.rng.random() < 0.5 else stop - wide or 10**6)]
        self.add("Slice", [name, *bounds, self.integers(1)], stop - start)

    def pick(self, source):
        name, wide = source
        places = self.rng.integers(-wide, wide, int(self.rng.integers(2, 7))).tolist()
        self.add("Gather", [name, self.integers(*places)], len(places), axis=1)

    def shuffle(self, source):
        name, wide = source
        groups = next((g for g in (4, 3, 2) if wide % g == 0), 1)
        split = self.add("Reshape", [name, self.integers(-1, groups, wide // groups, SIZE, SIZE)], None)
        turned = self.add("Transpose", [split], None, perm=[0, 2, 1, 3, 4])
        self.add("Reshape", [turned, self.integers(0, wide, SIZE, SIZE)], wide)

    def gate(self, source):
        name, wide = source
        pooled = self.add("GlobalAveragePool", [name], None)
        squeezed = self.add("Conv", [pooled, self.weight(4, wide, 1, 1), self.weight(4)], None)
        gate = self.add("Conv", [self.add("Relu", [squeezed], None), self.weight(wide, 4, 1, 1)], None)
        self.add("Mul", [name, self.add("Sigmoid", [gate], None)], wide)

    def finish(self):
        name, wide = self.values[-1]
        flat = self.add("Flatten", [name], None)
        head = self.weight(5, wide * SIZE * SIZE)
        self.nodes.append(helper.make_node("Gemm", [flat, head], ["y"], "head", transB=1))
        value = models.value
        return models.make_model(
            self.nodes, [value("x", [2, 3, SIZE, SIZE])], [value("y", [2, 5])], self.weights, opset=18
        )


KINDS = ("conv", "conv", "grouped", "depthwise", "norm", "relu", "join", "halves", "cut", "pick", "shuffle", "gate")


@st.composite
def graphs(draw):
    builder = Builder(draw(st.integers(0, 2**32 - 1)))
    builder.conv(builder.values[0], draw(st.integers(2, 12)))
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(KINDS))
        source = builder.values[-1 - draw(st.integers(0, min(3, len(builder.values) - 2)))]
        if kind == "conv":
            builder.conv(source, draw(st.integers(2, 12)))
        elif kind == "grouped":
            group = next((g for g in (3, 2) if source[1] % g == 0), 1)
            builder.conv(source, group * draw(st.integers(1, 4)), group)
        elif kind == "depthwise":
            builder.conv(source, source[1] * draw(st.integers(1, 2)), source[1])
        elif kind == "relu":
            builder.add("Relu", [source[0]], source[1])
        elif kind == "join":
            builder.join(source, builder.values[-1])
        else:
            getattr(builder, kind)(source)
    return builder.finish()


@settings(max_examples=60, deadline=None)
@given(graphs(), st.floats(0.2, 0.8), st.sampled_from(["layer", "global"]), st.sampled_from([1, 2]))
def test_random_graphs(model, amount, scope, round_to):
    try:
        zeroed, pruned = zeroed_and_pruned(model, amount=amount, scope=scope, round_to=round_to)
    except StepFailed as refusal:
        if refusal.code != "nothing_prunable":
            raise
        return
    onnx.checker.check_model(pruned, full_check=True)
    assert count_parameters(pruned).elements < count_parameters(model).elements
    x = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    (expected,), (found,) = run(zeroed, {"x": x}), run(pruned, {"x": x})
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())), rtol=0)
