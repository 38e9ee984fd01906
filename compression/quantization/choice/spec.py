"""How static quantization chooses the nodes that compute in integers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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


Selection = SelectAll | SelectByLatency
