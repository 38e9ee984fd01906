"""Spec of entropy coding."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import StepSpec


class Encode(StepSpec):
    """Store the whole result in a second file, `model.levity`, that is as small as the entropy of its weights allows
    and decodes to `model.onnx` byte for byte (Deep Compression, Han et al. 2015, section 4). The last step.
    """

    type: Literal["encode"] = "encode"
    coder: Literal["rans", "huffman"] = Field(default="rans")
    """`rans` (asymmetric numeral systems, Duda 2013) comes within one percent of the entropy; `huffman` is the paper's
    own coder and spends whole bits on every symbol."""

    @model_validator(mode="after")
    def _whole_file(self) -> Self:
        if self.include != ("*",) or self.exclude:
            msg = "encode stores the whole file: include and exclude have no effect; leave them out"
            raise ValueError(msg)
        return self
