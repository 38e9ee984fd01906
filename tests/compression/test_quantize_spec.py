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
