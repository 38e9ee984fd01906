"""How static quantization chooses the nodes that compute in integers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import Spec


class SelectAll(Spec):
    """Every node that has an integer form."""

    by: Literal["all"] = "all"
    """Nothing is measured; the same input gives the same bytes everywhere."""


class SelectByLatency(Spec):
    """Those with which the model runs fastest on this machine, by measuring (in the spirit of HAQ, Wang et al. 2019).

    Kernels are timed in float and in integers, and so is what lies between them; minimum cuts of the graph give
    candidates; the model is timed with each of them in turn, next to the original. Where none is faster than the
    original, all stays float. The choice belongs to this machine, and may differ between runs where two candidates are
    about as fast.
    """

    by: Literal["latency"] = "latency"
    """Wall times on this machine decide."""
    max_seconds: float = Field(default=60.0, gt=0, le=3600)
    """Wall time for choosing, in seconds, beyond what building and loading the last candidate takes."""
    batch_size: int = Field(default=1, ge=1, le=4096)
    """Samples in a timed call, where the model's batch axis is open."""


class SelectBySensitivity(Spec):
    """Those, with so many bits, that the model's outputs can stand (mixed precision, as in HAWQ, Dong et al. 2019).

    Each layer is quantized alone, with every number of bits, and the noise in the model's outputs is measured. From the
    spec's bits on, those layers get more bits, 16-bit activations or float that make the most noise, until the whole
    model agrees with the float one as wanted; where bits are limited, those get 4 that make the least noise a bit.
    """

    by: Literal["sensitivity"] = "sensitivity"
    """Noise in the outputs decides."""
    min_sqnr_db: float | None = Field(default=None, ge=0, le=120)
    """The least ratio of the outputs' energy to that of their noise, dB, on calibration samples."""
    max_mean_weight_bits: float | None = Field(default=None, ge=4, le=32)
    """The most bits of a weight, on average over all weights of layers. Bits below 8 lie in bytes until the file is
    encoded."""
    samples: int = Field(default=32, ge=1, le=10_000)
    """Calibration samples on which noise is measured."""

    @model_validator(mode="after")
    def _has_a_goal(self) -> Self:
        if self.min_sqnr_db is None and self.max_mean_weight_bits is None:
            msg = "give min_sqnr_db, max_mean_weight_bits, or both"
            raise ValueError(msg)
        return self


Selection = SelectAll | SelectByLatency | SelectBySensitivity
