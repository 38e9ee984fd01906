from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from compression.graph.architectures.layers_spec import Layers, names
from compression.graph.architectures.spec import Architecture, Input, ModelSource, Timm, Torchvision, Transformers

ARCHITECTURE = TypeAdapter(Architecture)
LINEAR = {"type": "linear", "in_features": 4, "out_features": 2}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"name": "torchvision:resnet18", "arguments": {"num_classes": 10, "progressive": True}}, Torchvision),
        ({"name": "timm:vit_tiny_patch16_224", "arguments": {"drop_path_rate": 0.1, "global_pool": "avg"}}, Timm),
        ({"name": "transformers:BertModel", "config": {"hidden_size": 8, "id2label": {"0": "no"}}}, Transformers),
        ({"layers": [LINEAR, {"type": "relu"}]}, Layers),
    ],
)
def test_kinds(given, kind):
    architecture = ARCHITECTURE.validate_python(given)
    assert type(architecture) is kind
    assert ARCHITECTURE.validate_json(ARCHITECTURE.dump_json(architecture)) == architecture


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give a name such as"),
        ({"name": "resnet18"}, "give a name such as"),
        ({"name": "os:system"}, "give a name such as"),
        ({"name": "torchvision:resnet18", "config": {}}, "Extra inputs"),
        ({"name": "torchvision:resnet18; import os"}, "should match pattern"),
        ({"name": "torchvision:resnet18", "arguments": {"weights": "DEFAULT"}}, "'weights' is not accepted"),
        ({"name": "torchvision:fcn_resnet50", "arguments": {"weights_backbone": None}}, "'weights_backbone' is not"),
        ({"name": "timm:resnet18", "arguments": {"pretrained": True}}, "'pretrained' is not accepted"),
        ({"name": "timm:resnet18", "arguments": {"checkpoint_path": "/etc/passwd"}}, "'checkpoint_path' is not"),
        ({"name": "timm:resnet18", "arguments": {"block": [1]}}, "'block' must be a number, a text"),
        ({"name": "timm:resnet18", "arguments": {"num_classes": 10**9}}, "must lie between"),
        ({"name": "timm:resnet18", "arguments": {"act_layer": "x" * 101}}, "100 characters"),
        ({"name": "timm:resnet18", "arguments": {"__class__": 1}}, "is no name of an argument"),
        ({"name": "transformers:BertModel", "config": {"auto_map": {"AutoModel": "a.B"}}}, "'auto_map' is not"),
        ({"name": "transformers:BertModel", "config": {"x": {"auto_map": "a.B"}}}, "'auto_map' is not accepted"),
        ({"name": "transformers:BertModel", "config": {"_attn_implementation": "a/b"}}, "is no name of an argument"),
        ({"name": "transformers:BertModel", "config": {"attn_implementation": "a/b"}}, "'attn_implementation' is not"),
        ({"name": "transformers:BertModel", "config": {"a": [[[[[[[[1]]]]]]]]}}, "levels deep"),
        ({"name": "transformers:BertModel", "config": {"a": ["xx"] * 9000}}, "bytes at most"),
        ({"layers": []}, "at least one layer"),
        ({"layers": [{"type": "exec"}]}, "does not match any of the expected tags"),
        ({"layers": [LINEAR | {"in_features": 0}]}, "greater than or equal to 1"),
        ({"layers": [LINEAR | {"name": "fc"}, LINEAR | {"name": "fc"}]}, "layers 0 and 1 are both called 'fc'"),
        ({"layers": [LINEAR | {"name": "1"}, LINEAR]}, "layers 0 and 1 are both called '1'"),
        ({"layers": [LINEAR | {"name": "a"}, LINEAR | {"name": "a.b"}]}, "would lie inside layer 0, 'a'"),
        ({"layers": [LINEAR | {"name": "a..b"}]}, "should match pattern"),
        (
            {"layers": [{"type": "conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3, "groups": 2}]},
            "must divide",
        ),
    ],
)
def test_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        ARCHITECTURE.validate_python(given)


def test_layers_are_named_as_in_sequential_unless_they_say():
    layers = Layers.model_validate({"layers": [LINEAR, {"type": "relu"}, LINEAR | {"name": "head.fc"}]}).layers
    assert names(layers) == ["0", "1", "head.fc"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": [0]}, "greater than or equal to 1"),
        ({"shape": ["batch", 3]}, "leave the batch axis out"),
        ({"shape": [60_000, 60_000]}, "elements at most"),
        ({"shape": [3], "dtype": "object"}, "float32"),
        ([], "1 to 16 inputs"),
        ([{"shape": [3]}, {"shape": [3]}], "names that differ"),
        ([{"shape": [3], "name": "a"}, {"shape": [3], "name": "a"}], "names that differ"),
    ],
)
def test_inputs_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        ModelSource.model_validate({"architecture": {"layers": [LINEAR]}, "input": given})


def test_one_input_and_several():
    one = ModelSource.model_validate({"architecture": {"layers": [LINEAR]}, "input": {"shape": [4]}})
    assert one.inputs == (Input(shape=(4,)),)
    several = ModelSource.model_validate({"architecture": {"layers": [LINEAR]}, "input": [{"shape": ["sequence"]}]})
    assert several.inputs == (Input(shape=("sequence",)),)
    assert ModelSource.model_validate({"architecture": {"layers": [LINEAR]}}).inputs is None


def test_describing_an_architecture_imports_nothing_heavy():
    code = (
        "import sys, compression.graph.architectures.spec, compression.graph.architectures.formats;"
        "assert not {'torch', 'onnx', 'numpy', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
