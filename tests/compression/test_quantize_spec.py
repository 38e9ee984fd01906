"""Specs of quantization as they are written down and read back."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compression.spec import (
    PipelineSpec,
    QuantizeDynamic,
    QuantizeFloat16,
    QuantizeStatic,
    QuantizeWeightOnly,
)


@pytest.mark.parametrize(
    "step",
    [
        QuantizeDynamic(),
        QuantizeStatic(),
        QuantizeStatic(calibration="percentile", percentile=99.5),
        QuantizeStatic(calibration="entropy", activation_bits=16),
        QuantizeWeightOnly(),
        QuantizeWeightOnly(method="hqq", weight_bits=3),
        QuantizeWeightOnly(method="gptq", act_order=False, damping=0.1, calibration_samples=8),
        QuantizeFloat16(),
    ],
    ids=lambda step: f"{step.mode}",
)
def test_a_spec_written_out_in_full_is_read_back(step):
    spec = PipelineSpec(steps=(step,))
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec


def test_percentile_without_its_calibration_is_refused():
    with pytest.raises(ValidationError, match="percentile has no effect with calibration 'entropy'"):
        QuantizeStatic(calibration="entropy", percentile=99.0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "hqq", "symmetric": True}, "looks for zero points, which symmetric fixes"),
        ({"act_order": False}, "act_order has no effect with method 'rtn'"),
        ({"method": "hqq", "damping": 0.1}, "damping has no effect with method 'hqq'"),
        ({"calibration_samples": 8}, "calibration_samples has no effect with method 'rtn'"),
        ({"weight_bits": 1}, "greater than or equal to 2"),
        ({"weight_bits": 9}, "less than or equal to 8"),
    ],
)
def test_weight_only_settings_that_contradict_each_other_are_refused(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        QuantizeWeightOnly(**settings)


def test_only_gptq_needs_data():
    needed = {method: QuantizeWeightOnly(method=method).data_needed for method in ("rtn", "hqq", "gptq")}
    assert needed == {"rtn": set(), "hqq": set(), "gptq": {"calibration"}}
