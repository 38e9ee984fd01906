"""Legal and illegal pipelines, one table."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from compression.spec import PipelineSpec, Step

PRUNE = {"type": "prune", "amount": 0.5}
PATTERN = {"type": "prune", "pattern": "2:4"}
CLUSTER = {"type": "cluster"}
STATIC = {"type": "quantize", "mode": "static"}
DYNAMIC = {"type": "quantize", "mode": "dynamic"}
WEIGHT_ONLY = {"type": "quantize", "mode": "weight_only"}
FLOAT16 = {"type": "quantize", "mode": "float16"}
QAT = {"type": "quantize", "mode": "qat"}
DISTILL = {"type": "distill", "student": {"name": "cnn"}}
FINETUNE = {"type": "finetune"}
ENCODE = {"type": "encode"}


@pytest.mark.parametrize(
    "steps",
    [
        [PRUNE],
        [CLUSTER],
        [STATIC],
        [DYNAMIC],
        [WEIGHT_ONLY],
        [FLOAT16],
        [QAT],
        [PRUNE, QAT],
        [PRUNE, PATTERN],
        [PRUNE, CLUSTER],
        [PRUNE, STATIC],
        [CLUSTER, DYNAMIC],
        [PRUNE, CLUSTER, FLOAT16],
        [PRUNE, PATTERN, CLUSTER, STATIC],
        [DISTILL],
        [DISTILL, PRUNE, CLUSTER, DYNAMIC],
        [FINETUNE, DISTILL],
        [ENCODE],
        [PRUNE, CLUSTER, STATIC, ENCODE],
    ],
)
def test_legal_orders(steps):
    spec = PipelineSpec.model_validate({"steps": steps})
    assert [step.type for step in spec.steps] == [step["type"] for step in steps]
    assert ("calibration" in spec.data_needed) == (STATIC in steps)
    assert ("training" in spec.data_needed) == any(step in steps for step in (QAT, DISTILL, FINETUNE))
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([CLUSTER, PRUNE], "step 1: 'prune' would undo 'cluster'"),
        ([PRUNE, DISTILL], "step 1: 'distill' would undo 'prune'"),
        ([DYNAMIC, DISTILL], "step 1: 'distill' would undo 'quantize'"),
        ([DISTILL, PRUNE, DISTILL], "step 2: 'distill' can be applied once"),
        ([STATIC, PRUNE], "step 1: 'prune' would undo 'quantize'"),
        ([DYNAMIC, CLUSTER], "step 1: 'cluster' would undo 'quantize'"),
        ([PRUNE, CLUSTER, PRUNE], "step 2: 'prune' would undo 'cluster'"),
        ([CLUSTER, CLUSTER], "step 1: 'cluster' can be applied once"),
        ([DYNAMIC, STATIC], "step 1: 'quantize' can be applied once"),
        ([PRUNE, FLOAT16, FLOAT16], "step 2: 'quantize' can be applied once"),
        ([QAT, PRUNE], "step 1: 'prune' would undo 'quantize'"),
        ([STATIC, QAT], "step 1: 'quantize' can be applied once"),
        ([CLUSTER, QAT], "step 1: 'quantize' in mode 'qat' trains the weights and would undo 'cluster'"),
        ([ENCODE, PRUNE], "step 1: 'prune' would undo 'encode'; put it before"),
        ([ENCODE, FINETUNE], "step 1: 'finetune' would undo 'encode'"),
        ([ENCODE, DYNAMIC], "step 1: 'quantize' would undo 'encode'"),
        ([ENCODE, ENCODE], "step 1: 'encode' can be applied once"),
        ([], "name at least one step"),
        ([PRUNE] * 33, "at most 32 items"),
    ],
)
def test_illegal_orders(steps, message):
    with pytest.raises(ValidationError) as caught:
        PipelineSpec.model_validate({"steps": steps})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "shrink"}, "type must be distill, prune, "),
        ({"type": "quantize", "mode": "magic"}, "quantize needs mode dynamic"),
        ({"type": "prune"}, "give exactly one of amount, threshold and pattern, not none"),
        ({"type": "prune", "amount": 0.5, "threshold": 1}, "not amount and threshold"),
        ({"type": "prune", "amount": 1.0}, "less than 1"),
        ({"type": "prune", "amount": 0}, "greater than 0"),
        ({"type": "prune", "amount": float("nan")}, "less than 1"),
        ({"type": "prune", "pattern": "4:2"}, "needs 1 <= n < m <= 64"),
        ({"type": "prune", "pattern": "2-4"}, "must look like n:m"),
        ({"type": "prune", "pattern": "2:4", "scope": "global"}, "scope 'global' ranks by amount"),
        ({"type": "prune", "amount": 0.5, "typo": 1}, "Extra inputs are not permitted"),
        ({"type": "prune", "amount": 0.5, "include": []}, "at least 1 item"),
        ({"type": "cluster", "clusters": 1}, "greater than or equal to 2"),
        ({"type": "encode", "coder": "zip"}, "Input should be 'rans' or 'huffman'"),
        ({"type": "encode", "exclude": ["fc*"]}, "encode stores the whole file"),
        ({"type": "quantize", "mode": "static", "percentile": 99.0}, "percentile has no effect"),
        ({"type": "quantize", "mode": "static", "weight_bits": 5}, "Input should be 4 or 8"),
        ({"type": "quantize", "mode": "weight_only", "group_size": 33}, "Input should be 16, 32"),
        ({"type": "quantize", "mode": "qat", "weight_bits": 1}, "greater than or equal to 2"),
        ({"type": "quantize", "mode": "qat", "weight_bits": 9}, "less than or equal to 8"),
        ({"type": "quantize", "mode": "qat", "activation_bits": 3}, "greater than or equal to 4"),
        ({"type": "quantize", "mode": "qat", "activation_bits": 16}, "less than or equal to 8"),
        ({"type": "quantize", "mode": "qat", "ranges": "guessed"}, "Input should be 'learned' or 'observed'"),
    ],
)
def test_steps_out_of_bounds(step, message):
    with pytest.raises(ValidationError) as caught:
        PipelineSpec.model_validate({"steps": [step]})
    assert message in str(caught.value)


def test_every_field_of_every_step_is_described():
    schema = TypeAdapter(Step).json_schema()
    for name, definition in schema["$defs"].items():
        assert definition.get("description"), name
        assert definition["additionalProperties"] is False
        for field, described in definition["properties"].items():
            if field in ("type", "mode"):
                assert "const" in described
            else:
                assert described.get("description"), f"{name}.{field}"


def test_specs_load_nothing_heavy():
    code = (
        "import sys, compression.spec, compression.cache, compression.data_spec, compression.signature;"
        "sys.exit(' '.join({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) in [(0, ""), (1, "")]
