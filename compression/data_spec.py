"""How a dataset file is to be read. No heavy imports."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import Spec

DatasetFormat = Literal["safetensors", "npz", "images"]


class ImagePreprocessing(Spec):
    """From a picture file to one input sample: decode, resize, crop, scale, normalize, lay out."""

    height: int = Field(ge=1, le=8192)
    """Rows of the sample, in pixels."""
    width: int = Field(ge=1, le=8192)
    """Columns of the sample, in pixels."""
    resize_shorter_to: int | None = Field(default=None, ge=1, le=8192)
    """Scale the shorter side to this many pixels, then crop the centre. None: scale to height x width directly."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    scale: float = Field(default=1 / 255, allow_inf_nan=False)
    """Pixel values (0 to 255) are multiplied by this first."""
    mean: tuple[float, ...] = (0.0,)
    """Then this is subtracted, one value for all channels or one for each."""
    std: tuple[float, ...] = (1.0,)
    """Then it is divided by this, one value for all channels or one for each."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "uint8"] = "float32"

    @model_validator(mode="after")
    def _per_channel_values(self) -> Self:
        channels = 1 if self.channels == "grey" else 3
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, channels):
                msg = f"{name} needs 1 or {channels} values, not {len(getattr(self, name))}"
                raise ValueError(msg)
        if any(value == 0 for value in self.std):
            msg = "std must not be 0"
            raise ValueError(msg)
        if self.resize_shorter_to is not None and self.resize_shorter_to < max(self.height, self.width):
            msg = f"resize_shorter_to ({self.resize_shorter_to}) is smaller than the crop {self.height}x{self.width}"
            raise ValueError(msg)
        return self
