"""Architectures of libraries that an operator may add: pip install 'levity[architectures]'."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compression.errors import ModelRejected
from compression.graph.architectures.companion import read_companion
from compression.graph.architectures.convert import convert
from compression.graph.architectures.spec import ModelSource

BERT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40,
    "max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 32}


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (levity[architectures])")


def converted(tmp_path, module, architecture, given=None):
    torch.save(module.state_dict(), tmp_path / "w.pt")
    source = ModelSource.model_validate({"architecture": architecture, "input": given})
    return convert(tmp_path / "w.pt", source, tmp_path / "out", threads=1)


def assert_the_state_dict_comes_back(out, module):
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load(out / "model.onnx").graph.initializer}
    back, gone = read_companion(out / "state_dict.safetensors").complete(stored)
    assert gone == []
    assert back.keys() == module.state_dict().keys()
    for key, tensor in module.state_dict().items():
        np.testing.assert_array_equal(back[key], tensor.numpy(), err_msg=key)


def test_timm(tmp_path):
    timm = library("timm")
    torch.manual_seed(0)
    arguments = {"num_classes": 10, "img_size": 32, "patch_size": 16, "depth": 1}
    module = timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments)
    found = converted(tmp_path, module, {"name": "timm:vit_tiny_patch16_224", "arguments": arguments})
    assert found.summary.inputs[0].shape == ("batch", 3, 32, 32)
    assert_the_state_dict_comes_back(tmp_path / "out", module)


@pytest.mark.parametrize(
    ("name", "config", "inputs", "output"),
    [
        ("BertForSequenceClassification", BERT, ["input_ids", "attention_mask"], ("logits", ("batch", 2))),
        ("GPT2LMHeadModel", GPT2, ["input_ids", "attention_mask"], ("logits", ("batch", "sequence", 40))),
    ],
)
def test_transformers(tmp_path, name, config, inputs, output):
    """GPT-2 keeps one tensor for both ends of the network, under two keys."""
    transformers = library("transformers")
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    module = kind(kind.config_class(**config))
    found = converted(tmp_path, module, {"name": f"transformers:{name}", "config": config})
    assert [one.name for one in found.summary.inputs] == inputs
    assert all(one.shape == ("batch", "sequence") for one in found.summary.inputs)
    assert [(one.name, one.shape) for one in found.summary.outputs] == [output]
    assert_the_state_dict_comes_back(tmp_path / "out", module)


@pytest.mark.parametrize(("name", "nearest"), [("timm:resnet81", "resnet18"), ("transformers:BertModell", "BertModel")])
def test_names_that_a_library_does_not_know(tmp_path, name, nearest):
    library(name.partition(":")[0])
    with pytest.raises(ModelRejected) as caught:
        converted(tmp_path, torch.nn.Linear(2, 2), {"name": name})
    assert caught.value.code == "architecture_unknown"
    assert nearest in caught.value.message


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_without_the_library(tmp_path, monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == name else found(wanted))
    with pytest.raises(ModelRejected) as caught:
        converted(tmp_path, torch.nn.Linear(2, 2), {"name": f"{name}:X"})
    assert caught.value.code == f"{name}_missing"
    assert "levity[architectures]" in caught.value.message
