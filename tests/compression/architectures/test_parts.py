"""Pieces of the way from a module to a graph: shared tensors, unused ones, matrices that are stored transposed."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.numpy import save_file
from torch import nn

from compression.errors import ModelRejected
from compression.graph.architectures.companion import Companion, beside, read_companion, write_companion
from compression.graph.architectures.export import Network
from compression.graph.architectures.fit import aliases, fit
from compression.graph.architectures.orientation import store_transposed
from compression.graph.architectures.spec import Input
from tests.compression.models import make_model, value


class Tied(nn.Module):
    """A language model's two ends, one tensor; and a head that only trains."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 12, bias=False)
        self.head.weight = self.embed.weight
        self.auxiliary = nn.Linear(4, 2)
        self.register_buffer("offsets", torch.arange(4))
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.embed(ids))) * self.scale + self.offsets)


def tied():
    torch.manual_seed(0)
    return Tied().eval()


def test_shared_and_unused_tensors():
    module = tied()
    assert aliases(module) == {"head.weight": "embed.weight"}
    network = Network(module, [Input(shape=("sequence",), dtype="int64")], by_name=False)
    model = network.export(["output"])
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    held = beside(list(module.state_dict()), aliases(module), frozenset(stored))
    assert held.keys() == {"embed.weight", "body.weight", "body.bias", "head.weight", "offsets"}
    shared = held.pop("embed.weight")
    assert shared == held.pop("head.weight")
    assert len({"embed.weight", "head.weight"} & set(stored)) == 1
    assert all(key == name for key, name in held.items())
    assert "auxiliary.weight" not in stored
    arrays = network.example(3, seed=1)
    expected = network.run(arrays)["output"]
    permutations = store_transposed(model, module.state_dict().keys())
    # The shared one is looked up too, so it stays as it is.
    assert permutations == {"body.weight": (1, 0)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, arrays)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_shared_tensor_may_be_given_once():
    state = tied().state_dict()
    other = Tied()
    with torch.no_grad():
        other.embed.weight.zero_()
    fit(other, {key: tensor for key, tensor in state.items() if key != "head.weight"}, None)
    assert torch.equal(other.head.weight, state["embed.weight"])
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(ModelRejected, match=r"'embed.weight' and 'head.weight' are one tensor") as caught:
        fit(Tied(), state, None)
    assert caught.value.code == "state_dict_mismatch"


def test_counters_of_training_steps_may_be_missing():
    module = nn.Sequential(nn.BatchNorm1d(3))
    state = {key: tensor + 1 for key, tensor in module.state_dict().items() if "tracked" not in key}
    fit(module, state, None)
    assert torch.equal(module[0].running_var, torch.full((3,), 2.0))


class Renamed(nn.Linear):
    """Reads what its first version wrote under another name, as attention layers do."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if (local_metadata.get("version") or 1) < 2 and f"{prefix}w" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}w")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


@pytest.mark.parametrize("metadata", [None, {"": {"version": 1}}])
def test_files_of_older_versions_are_read_as_torch_reads_them(metadata):
    module = Renamed(2, 2, bias=False)
    fit(module, {"w": torch.ones(2, 2)}, metadata)
    assert torch.equal(module.weight, torch.ones(2, 2))
    with pytest.raises(ModelRejected, match="it lacks weight; the architecture has no w"):
        fit(Renamed(2, 2, bias=False), {"w": torch.ones(2, 2)}, {"": {"version": 2}})


def chain(*permutations, lookup=False, output=False):
    """`x` times a stored (3, 2) matrix after each permutation, summed."""
    weights = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
    nodes = [
        helper.make_node("Transpose", ["w"], [f"t{index}"], **({} if perm is None else {"perm": perm}))
        for index, perm in enumerate(permutations)
    ]
    nodes += [helper.make_node("MatMul", ["x", f"t{index}"], [f"y{index}"]) for index in range(len(permutations))]
    outputs = [value(f"y{index}", ["n", 3]) for index in range(len(permutations))]
    if lookup:
        nodes.append(helper.make_node("Gather", ["w", "i"], ["looked"]))
        outputs.append(value("looked", [1, 2]))
        weights["i"] = np.zeros(1, np.int64)
    if output:
        outputs.append(value("t0", [2, 3]))
    return make_model(nodes, [value("x", ["n", 2])], outputs, weights)


@pytest.mark.parametrize(
    ("model", "names", "changed"),
    [
        (chain([1, 0]), {"w"}, {"w": (1, 0)}),
        (chain(None, [1, 0]), {"w"}, {"w": (1, 0)}),
        (chain([1, 0]), set(), {}),
        (chain([1, 0], lookup=True), {"w"}, {}),
        (chain([1, 0], output=True), {"w"}, {}),
    ],
    ids=["one", "two", "not ours", "looked up", "given out"],
)
def test_matrices_are_stored_as_they_are_used(model, names, changed):
    x = {"x": np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)}

    def outputs():
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, x)

    before = outputs()
    assert store_transposed(model, names) == changed
    assert [node.op_type for node in model.graph.node].count("Transpose") == (0 if changed else 1)
    for ours, theirs in zip(outputs(), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_what_a_graph_does_not_hold_comes_back(tmp_path):
    rest = {"counter": np.array(7), "aux": np.ones((2, 3), np.float32)}
    companion = Companion({"a": "a", "b": "a", "c": "c", "d": "d"}, {"a": (1, 2, 0)}, rest)
    write_companion(tmp_path / "c", companion)
    found = read_companion(tmp_path / "c")
    assert found is not None
    a = np.arange(24).reshape(2, 3, 4)
    tensors, gone = found.complete({"a": a.transpose(1, 2, 0), "c": a, "other": a})
    assert gone == ["d"]
    assert tensors.keys() == {"a", "b", "c", "counter", "aux"}
    assert all((tensors[key] == a).all() for key in "abc")
    assert tensors["counter"] == 7


def test_other_files_beside_a_model_are_left_alone(tmp_path):
    assert read_companion(tmp_path / "nothing") is None
    (tmp_path / "text").write_text("hello")
    assert read_companion(tmp_path / "text") is None
    save_file({"a": np.ones(2)}, tmp_path / "weights")
    assert read_companion(tmp_path / "weights") is None
    save_file({"a": np.ones(2)}, tmp_path / "damaged", {"levity.state_dict/1": '{"initializers": 3}'})
    assert read_companion(tmp_path / "damaged") is None
