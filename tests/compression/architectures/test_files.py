"""Files of weights that somebody wrote to do harm, or did not write to the end."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compression.errors import ModelRejected
from compression.graph.architectures.formats import Format, holds_weights, weights_format
from compression.graph.architectures.state_dict import read_state_dict
from compression.graph.limits import DEFAULT_LIMITS, Limits
from compression.graph.load import load_model
from tests.compression import models


class Payload:
    """What loading it as a pickle would run."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (os.system, (f"touch {self.canary}",))


def state():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).state_dict()


def saved(path, value):
    torch.save(value, path)
    return path


def rewritten(path, source, change, compression=zipfile.ZIP_STORED):
    """A copy of an archive with its entries changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            for name, content in change(entry.filename, old.read(entry)):
                new.writestr(name, content)
    return path


def refusal(path, limits=DEFAULT_LIMITS):
    with pytest.raises(ModelRejected) as caught:
        read_state_dict(path, limits)
    assert caught.value.message.endswith((".", "?"))
    return caught.value


def test_both_formats_give_the_same_tensors(tmp_path):
    given = state()
    torch.save(given, tmp_path / "a.pt")
    save_file(given, tmp_path / "a.safetensors")
    for name, kind in (("a.pt", Format.TORCH_ZIP), ("a.safetensors", Format.SAFETENSORS)):
        assert weights_format(tmp_path / name) is kind
        tensors, metadata = read_state_dict(tmp_path / name, DEFAULT_LIMITS)
        assert tensors.keys() == given.keys()
        assert all(torch.equal(tensors[key], given[key]) for key in given)
        assert (metadata or {}).get("1") == ({"version": 2} if kind is Format.TORCH_ZIP else None)


def test_the_name_says_nothing(tmp_path):
    save_file(state(), tmp_path / "a.pt")
    assert read_state_dict(tmp_path / "a.pt", DEFAULT_LIMITS)[0].keys() == state().keys()


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    error = refusal(saved(tmp_path / "a.pt", {"0.weight": torch.zeros(2), "x": Payload(canary)}))
    assert error.code == "pickle_refused"
    assert "posix.system" in error.message
    assert "weights_only" not in error.message
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload(canary)))
    assert refusal(tmp_path / "b.pt").code == "legacy_pickle"
    source = saved(tmp_path / "c.pt", state())
    evil = pickle.dumps(Payload(canary), protocol=2)
    path = rewritten(tmp_path / "d.pt", source, lambda name, old: [(name, evil if name.endswith("data.pkl") else old)])
    assert refusal(path).code == "pickle_refused"
    torch.save(state(), tmp_path / "e.pt", _use_new_zipfile_serialization=False)
    assert refusal(tmp_path / "e.pt").code == "legacy_pickle"
    assert not canary.exists()
    os.system(Payload(canary).__reduce__()[1][0])
    assert canary.exists(), "the payload itself must work"


def test_a_whole_module(tmp_path):
    error = refusal(saved(tmp_path / "a.pt", nn.Linear(2, 2)))
    assert error.code == "pickle_refused"
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "state_dict()" in error.message


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"state_dict": state(), "epoch": 3}, "Under 'state_dict'"),
        ([torch.zeros(2)], "holds a list"),
        ({}, "no tensors"),
        ({3: torch.zeros(2)}, "no key"),
        ({"a": torch.zeros(4).to_sparse()}, "'a' is no plain tensor"),
        ({"a": torch.zeros(1).expand(1 << 30)}, "'a' declares more elements"),
    ],
)
def test_no_state_dict(tmp_path, value, said):
    error = refusal(saved(tmp_path / "a.pt", value))
    assert error.code == "not_a_state_dict"
    assert said in error.message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(tmp_path, value):
    save_file({"a": torch.zeros(3), "b": torch.tensor([1.0, value])}, tmp_path / "a")
    error = refusal(tmp_path / "a")
    assert error.code == "non_finite_weights"
    assert "'b'" in error.message


def test_zip_bomb(tmp_path):
    source = saved(tmp_path / "a.pt", {"a": torch.zeros(1 << 20)})
    path = rewritten(tmp_path / "b.pt", source, lambda name, old: [(name, old)], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < source.stat().st_size / 100
    error = refusal(path)
    assert error.code == "archive_unsafe"
    assert "compressed" in error.message


def test_sizes_and_counts_are_capped_before_torch_reads(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.pt", {str(index): torch.zeros(100) for index in range(100)})
    monkeypatch.setattr(torch, "load", None)
    assert refusal(path, Limits(max_bytes=30_000)).code == "model_too_large"
    assert refusal(path, Limits(max_initializers=20)).code == "too_many_tensors"
    save_file({str(index): torch.zeros(100) for index in range(100)}, tmp_path / "b")
    assert refusal(tmp_path / "b", Limits(max_bytes=30_000)).code == "model_too_large"
    assert refusal(tmp_path / "b", Limits(max_initializers=20)).code == "too_many_tensors"


def overlapping(path, source):
    """A directory whose entries all lie over the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 50_000)
        first = archive.infolist()[0]
        for index in range(3):
            archive.writestr(f"a/data/{index}", b"")
            entry = archive.infolist()[-1]
            entry.header_offset, entry.CRC = first.header_offset, first.CRC
            entry.file_size = entry.compress_size = first.file_size
    return path


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (overlapping, "archive_unsafe"),
        (
            lambda path, source: rewritten(path, source, lambda n, c: [(n, c)] * (1 + n.endswith("/0"))),
            "archive_unsafe",
        ),
        (
            lambda path, source: rewritten(path, source, lambda n, c: [(n.replace("data.pkl", "x"), c)]),
            "not_a_state_dict",
        ),
        (lambda path, source: rewritten(path, source, lambda n, c: [(f"{n}{c[:1]}", c)]), "not_a_state_dict"),
        (lambda path, source: rewritten(path, source, with_code), "torchscript_not_accepted"),
        (lambda path, source: rewritten(path, source, without_storage), "not_a_state_dict"),
    ],
    ids=["overlap", "twice", "no pickle", "several folders", "torchscript", "no storage"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_archives(tmp_path, make, code):
    assert refusal(make(tmp_path / "b.pt", saved(tmp_path / "a.pt", state()))).code == code


def with_code(name, content):
    extra = [("a/constants.pkl", b""), ("a/code/__torch__.py", b"")] if name.endswith("data.pkl") else []
    return [(name, content), *extra]


def without_storage(name, content):
    return [] if name.endswith("/data/0") else [(name, content)]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_cut_short(tmp_path, kind, keep):
    whole = tmp_path / "a"
    weights = {str(index): torch.rand(50, 50) for index in range(20)}
    if kind == "pt":
        torch.save(weights, whole)
    else:
        save_file(weights, whole)
    content = whole.read_bytes()
    (tmp_path / "b").write_bytes(content[: int(len(content) * keep)])
    assert refusal(tmp_path / "b").code == "truncated_model"


def flipped(content, position):
    changed = bytearray(content)
    changed[position] ^= 0x5A
    return bytes(changed)


def test_damaged_bytes_are_refused_or_read_never_anything_else(tmp_path):
    source = saved(tmp_path / "a.pt", state())
    content = source.read_bytes()
    for position in range(0, len(content), 7):
        (tmp_path / "b.pt").write_bytes(flipped(content, position))
        try:
            read_state_dict(tmp_path / "b.pt", DEFAULT_LIMITS)
        except ModelRejected:
            continue


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"{",
        b"[1]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}',
        b'{"a":' * 20_000,
    ],
    ids=["empty", "half", "list", "number", "wrong length", "deep"],
)
def test_safetensors_headers(tmp_path, header):
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert refusal(tmp_path / "a").code == "not_a_state_dict"


def test_other_bytes(tmp_path):
    for content in (b"", b"hello, world", bytes(1000), b"\xff" * 1000, b"GIF89a" + bytes(500)):
        (tmp_path / "a").write_bytes(content)
        assert refusal(tmp_path / "a").code == "not_a_state_dict"


def test_onnx_needs_no_architecture(tmp_path):
    error = refusal(models.save(models.cnn(), tmp_path / "m.onnx"))
    assert error.code == "architecture_with_onnx"
    assert "leave 'architecture' out" in error.message


def test_weights_without_architecture(tmp_path):
    torch.save(state(), tmp_path / "a.pt")
    save_file(state(), tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        with pytest.raises(ModelRejected) as caught:
            load_model(path)
        assert caught.value.code == "architecture_missing"
        assert "torchvision:resnet18" in caught.value.message


def test_a_zip_of_something_else_is_no_weights(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, image=np.zeros(3))
    path = Path(tmp_path / "a.npz")
    path.write_bytes(buffer.getvalue())
    assert not holds_weights(path)
    assert refusal(path).code == "not_a_state_dict"
