"""Specs of quantization, one class a mode."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import DataRole, NamePattern, StepSpec
from compression.quantization.choice.spec import SelectAll, Selection
from compression.training.spec import Training


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
    weight_bits: Literal[4, 8] = 8
    """Bits of a weight. Whole numbers of 4 bits lie in bytes, as integer kernels read no fewer; coding them later
    saves the rest."""
    activation_bits: Literal[8, 16] = 8
    """Bits of an activation."""
    per_channel: bool = True
    """One weight scale for each output channel instead of one for each tensor."""
    symmetric_activations: bool = False
    """Zero point of activations fixed at zero; costs range, saves work on some accelerators."""
    calibration: Literal["best", "minmax", "percentile", "entropy", "mse"] = "best"
    """How a range is read off the calibration batches: the extremes, a percentile of the values (half of the rest on
    either side), the range that loses the least information (Migacz 2017), or the one whose rounding and clipping
    together err least in the sum of squares. `best` quantizes the whole model with the extremes and with the least
    error, and keeps what agrees better with the float model on calibration samples: clipping errs less in each value,
    but always to the same side, which many layers add up."""
    percentile: float = Field(default=99.99, ge=50, le=100)
    """Share of values inside the range, in percent. Used by calibration `percentile`."""
    weight_range: Literal["max", "mse"] = "mse"
    """How far the scale of a weight reaches: to its largest magnitude, or to where rounding and clipping together err
    least in the sum of squares."""
    rounding: Literal["nearest", "adaptive"] = "nearest"
    """`adaptive`: each number of a weight is rounded up or down so that the layer's outputs err least on calibration
    samples (the objective of AdaRound, Nagel et al. 2020); worth its time with 4 bits."""
    bias_correction: bool = True
    """Take off each bias by how much rounding the weights moves the mean of the outputs (Nagel et al. 2019, section
    4.2), with the means of the inputs measured in calibration."""
    equalization: bool = True
    """Rescale channels so that the weights of neighbouring layers reach equally far, which computes the same
    (cross-layer equalization, Nagel et al. 2019, section 4.1). Through ReLU and pooling, not through ReLU6, which cuts
    all channels at one value. Channels that are nearly alike stay."""
    smoothing: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = "auto"
    """Rescale the channels of activations behind layers and layer norms by max|x|^smoothing / max|w|^(1 - smoothing),
    which moves outliers into the weights and computes the same (SmoothQuant, Xiao et al. 2022, which takes 0.5). Where
    not only layers read the activation, these read a copy. `auto`: 0.7 where layers read what layer norms give and the
    whole model agrees better with the float one then; None: leave channels as they are."""
    calibration_samples: int = Field(default=256, ge=1, le=1_000_000)
    """At most so many samples of the calibration dataset are run through the model."""
    reduce_range: bool | None = None
    """Use 7 of the 8 bits of a weight. CPUs without VNNI add two products in 16 bits, which 8 bits can exceed. None: on
    such a machine all 8 bits, with scales so wide that no two weights that are added there exceed them; on others all
    8 bits."""

    selection: Selection = Field(default=SelectAll(), discriminator="by")
    """Which of the nodes with an integer form compute in integers."""

    @property
    def depends_on_machine(self) -> bool:
        return self.selection.by == "latency"

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
    """Weights to 2 to 8 bits in groups that share a scale; activations stay float.

    Matrix products read the codes as they are (MatMulNBits), embeddings decode the rows they look up
    (GatherBlockQuantized), all other layers decode their weight when they run (DequantizeLinear), which makes the file
    smaller and these layers slower. Needs `data.calibration` for the method `gptq` alone.
    """

    type: Literal["quantize"] = "quantize"
    mode: Literal["weight_only"] = "weight_only"
    weight_bits: int = Field(default=4, ge=2, le=8)
    """Bits of a weight. Runtimes hold 2, 4 or 8 bits: weights of 3 bits take 4 in the file, those of 5 to 7 take 8,
    until they are coded. The report says what each takes."""
    group_size: Literal[16, 32, 64, 128, 256] = 32
    """Consecutive weights along the input axis that share one scale."""
    method: Literal["rtn", "hqq", "gptq"] = "rtn"
    """How codes are found. `rtn`: the nearest one. `hqq`: scales and zero points that err least by a norm which
    forgives outliers, without data (half-quadratic quantization, Badri & Shaji 2023). `gptq`: the error of each weight
    is made up for by the weights after it, as calibration data says they work together (Frantar et al. 2022); layers
    other than matrix products and convolutions are rounded to nearest."""
    symmetric: bool | None = None
    """Zero point fixed in the middle of the range. None: so for `rtn` and `gptq`; `hqq` looks for zero points."""
    int8_products: bool = True
    """Matrix products round activations to 8 bits, in groups as they come, and multiply whole numbers: many times
    faster on CPUs, with noise 45 dB below the output. False multiplies floats."""
    act_order: bool = True
    """Weights are rounded in the order in which their inputs matter, the strongest first; their groups stay as they
    are. Used by method `gptq`."""
    damping: float = Field(default=0.01, gt=0, le=1)
    """Added to the diagonal of the second moments of a layer's inputs, as a share of its mean, so that they can be
    inverted. Used by method `gptq`."""
    calibration_samples: int = Field(default=128, ge=1, le=1_000_000)
    """At most so many samples of the calibration dataset are run through the model. Used by method `gptq`."""

    @property
    def data_needed(self) -> frozenset[DataRole]:
        return frozenset({"calibration"} if self.method == "gptq" else ())

    @property
    def is_symmetric(self) -> bool:
        """Whether zero points are fixed in the middle."""
        return self.method != "hqq" if self.symmetric is None else self.symmetric

    @model_validator(mode="after")
    def _zero_points_are_free(self) -> Self:
        if self.method == "hqq" and self.symmetric:
            msg = "method 'hqq' looks for zero points, which symmetric fixes: leave symmetric out, or use 'rtn'"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        # Compared with the default rather than asked whether it was given: a spec written out in full is read back.
        for name in ("act_order", "damping", "calibration_samples"):
            if self.method != "gptq" and getattr(self, name) != type(self).model_fields[name].default:
                msg = f"{name} has no effect with method '{self.method}'"
                raise ValueError(msg)
        return self


class QuantizeFloat16(StepSpec):
    """Weights and computation to IEEE half precision, save where it overflows; inputs and outputs keep their type.

    Nodes that make or read values beyond 65,504, or tensors so small that float16 has no digits for them, stay in
    float32, and the report names them. Values are measured on `data.calibration` where it is given, else on inputs
    made up from the model's signature.
    """

    type: Literal["quantize"] = "quantize"
    mode: Literal["float16"] = "float16"
    keep_io_types: bool = True
    """Inputs and outputs stay float32, so callers need not change."""
    keep: tuple[NamePattern, ...] = Field(default=(), max_length=1000)
    """Shell-style patterns over node names: what matches computes in float32, whatever it was measured to hold. A
    pattern that matches nothing is an error."""
    calibration_samples: int = Field(default=64, ge=1, le=1_000_000)
    """At most so many samples are run through the model to see how far its values reach."""


class QuantizeBfloat16(StepSpec):
    """Weights to bfloat16 at rest, half the bytes with the range of float32; computation stays in float32.

    Every weight is widened when the model is loaded: ONNX Runtime's CPU kernels do not compute in bfloat16. Needs no
    data.
    """

    type: Literal["quantize"] = "quantize"
    mode: Literal["bfloat16"] = "bfloat16"


class QuantizeAware(StepSpec):
    """Train with the rounding of few bits in place, so that the network learns to live with it (Jacob et al. 2017,
    section 3). Needs `data.training`.

    Batch norms are folded into their layers first; then weights and activations pass through fake quantization while
    the weights are trained. The result is an ONNX graph with QuantizeLinear/DequantizeLinear pairs, whose whole numbers
    lie in 8 bits whatever their own bits, so that integer kernels run them; coding them later saves the rest.
    """

    type: Literal["quantize"] = "quantize"
    mode: Literal["qat"] = "qat"
    weight_bits: int = Field(default=8, ge=2, le=8)
    """Bits of a weight."""
    activation_bits: int | None = Field(default=8, ge=4, le=8)
    """Bits of an activation; None leaves activations and biases in float. What leaves the last layer has 8."""
    per_channel: bool = True
    """One weight scale for each output channel instead of one for each tensor."""
    ranges: Literal["learned", "observed"] = "learned"
    """Step sizes are trained along with the weights (LSQ, Esser et al. 2020), from those that err least on; or follow
    from the largest weight and a moving average of the activations' extremes (Jacob et al. 2017, section 3.1)."""
    keep_first_last_8bit: bool = True
    """The weights of the first and the last layers, and what goes into these layers, have 8 bits: they cost little
    there, and fewer cost much accuracy."""
    calibration_samples: int = Field(default=256, ge=1, le=1_000_000)
    """Training samples, taken evenly over the dataset, whose activations give the ranges to start from."""
    reduce_range: bool | None = None
    """Use 7 of the 8 bits of a weight that meets 8-bit activations, which CPUs without VNNI need to add products
    without saturating. None: decided by this machine's CPU."""
    keep_zeros: bool = True
    """Weights that are exactly zero stay so: what earlier steps have pruned is not undone."""
    training: Training = Training(learning_rate=3e-4)
    """How to train."""

    @property
    def data_needed(self) -> frozenset[DataRole]:
        return frozenset({"training"})


Quantize = QuantizeDynamic | QuantizeStatic | QuantizeWeightOnly | QuantizeFloat16 | QuantizeBfloat16
"""The modes that need no training."""
