"""Spec of low-rank factorization."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compression._spec_base import StepSpec


class Factorize(StepSpec):
    """Replace matrices and convolutions by products of thinner ones (Denton et al. 2014; Kim et al. 2016).

    Give one of `energy`, `rank_share` and `target_parameters`. A layer that would not shrink stays as it is, and the
    report says so. Needs no data; a `finetune` step afterwards recovers accuracy.
    """

    type: Literal["factorize"] = "factorize"
    energy: float | None = Field(default=None, gt=0, lt=1, examples=[0.9])
    """Share of the sum of squared singular values that is kept in each layer."""
    rank_share: float | None = Field(default=None, gt=0, lt=1, examples=[0.5])
    """Rank of each layer as a share of the largest that it can have."""
    target_parameters: float | None = Field(default=None, gt=0, lt=1, examples=[0.5])
    """Parameters of the selected layers afterwards, as a share of those before; all layers keep the same energy."""
    convolution: Literal["tucker", "svd"] = "tucker"
    """How convolutions with kernels larger than 1x1 are split. `tucker`: 1x1, the kernel on fewer channels, 1x1 (Kim et
    al. 2016, section 3.1); `svd`: the kernel with fewer outputs, then 1x1."""
    round_to: int = Field(default=1, ge=1, le=256)
    """Ranks are multiples of this, rounded up, where the layer is large enough."""

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        given = [name for name in ("energy", "rank_share", "target_parameters") if getattr(self, name) is not None]
        if len(given) != 1:
            msg = (
                "give exactly one of energy, rank_share and target_parameters, "
                f"not {' and '.join(given) if given else 'none'}"
            )
            raise ValueError(msg)
        return self
