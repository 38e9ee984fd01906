"""Specs of quantization, one class a mode."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import DataRole, StepSpec


class QuantizeDynamic(StepSpec):
    """Weights to 8 bits at rest; activations are quantized at run time by the range of each batch. Needs no data."""

    type: Literal["quantize"] = "quantize"
    mode: Literal["dynamic"] = "dynamic"
    weight_bits: Literal[8] = 8
    """Bits of a weight."""
    per_channel: bool = True
    """One scale for each output channel instead of one for each tensor."""
    reduce_range: bool | None = None
    """Use 7 of the 8 bits of a weight, which CPUs without VNNI need to add products without saturating.
    None: decided by this machine's CPU."""


class QuantizeStatic(StepSpec):
    """Weights and activations to 8 bits, with activation ranges from calibration data (Jacob et al. 2017).

    The result is an ONNX graph with QuantizeLinear/DequantizeLinear pairs. Needs `data.calibration`.
    """

    type: Literal["quantize"] = "quantize"
    mode: Literal["static"] = "static"
    weight_bits: Literal[8] = 8
    """Bits of a weight."""
    activation_bits: Literal[8, 16] = 8
    """Bits of an activation."""
    per_channel: bool = True
    """One weight scale for each output channel instead of one for each tensor."""
    symmetric_activations: bool = False
    """Zero point of activations fixed at zero; costs range, saves work on some accelerators."""
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    """How a range is read off the calibration batches: the extremes, a percentile of the values (half of the rest on
    either side), or the range that loses the least information (Migacz 2017)."""
    percentile: float = Field(default=99.99, ge=50, le=100)
    """Share of values inside the range, in percent. Used by calibration `percentile`."""
    calibration_samples: int = Field(default=256, ge=1, le=1_000_000)
    """At most so many samples of the calibration dataset are run through the model."""
    reduce_range: bool | None = None
    """Use 7 of the 8 bits of a weight, which CPUs without VNNI need to add products without saturating.
    None: decided by this machine's CPU."""

    @property
    def data_needed(self) -> frozenset[DataRole]:
        return frozenset({"calibration"})

    @model_validator(mode="after")
    def _percentile_is_used(self) -> Self:
        # Compared with the default rather than asked whether it was given: a spec written out in full is read back.
        if self.percentile != type(self).model_fields["percentile"].default and self.calibration != "percentile":
            msg = f"percentile has no effect with calibration '{self.calibration}'"
            raise ValueError(msg)
        return self


class QuantizeWeightOnly(StepSpec):
    """Weights of matrix products to 4 or 8 bits in groups; activations stay float. Needs no data."""

    type: Literal["quantize"] = "quantize"
    mode: Literal["weight_only"] = "weight_only"
    weight_bits: Literal[4, 8] = 4
    """Bits of a weight."""
    group_size: Literal[16, 32, 64, 128, 256] = 32
    """Consecutive weights along the input axis that share one scale."""
    symmetric: bool = True
    """Zero point fixed in the middle of the range."""


class QuantizeFloat16(StepSpec):
    """Weights and computation to IEEE half precision; inputs and outputs keep their type. Needs no data."""

    type: Literal["quantize"] = "quantize"
    mode: Literal["float16"] = "float16"
    keep_io_types: bool = True
    """Inputs and outputs stay float32, so callers need not change."""


Quantize = QuantizeDynamic | QuantizeStatic | QuantizeWeightOnly | QuantizeFloat16
