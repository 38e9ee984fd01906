"""How far the outputs of a model agree with those of the one that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from compression.context import Context
from compression.data.feed import ModelFeed
from compression.quantization import prepare

_BATCH = 8
# Outputs of the float model that are kept to be compared with.
_KEPT_BYTES = 64 << 20


class Agreement:
    """A float model's outputs on some samples, which others are compared with.

    Args:
        model: The float model; it is run at once.
        feed: Samples under the names of its inputs.
        context: Threads and cancellation.
        samples: At most so many samples count; fewer where outputs are large.

    Raises:
        StepFailed: `unsupported_by_runtime`.
        DataRejected: As reading the samples may.
    """

    def __init__(self, model: onnx.ModelProto, feed: ModelFeed, context: Context, samples: int) -> None:
        self._context = context
        self._expected: list[tuple[Mapping[str, Any], list[npt.NDArray[Any]]]] = []
        kept = 0
        with prepare.runtime_failures("running the float model"):
            session = prepare.session(model.SerializeToString(), context)
            for batch in feed.batches(min(_BATCH, samples), samples):
                context.check_cancelled()
                outputs = [np.asarray(output) for output in session.run(None, dict(batch.inputs))]
                self._expected.append((batch.inputs, outputs))
                kept += sum(output.nbytes for output in outputs)
                if kept > _KEPT_BYTES:
                    break

    def sqnr(self, model: onnx.ModelProto) -> float:
        """Signal-to-noise ratio of another model's outputs, dB: noise over signal, averaged over float outputs.

        Infinite where nothing differs, minus infinite where something is not a number.

        Raises:
            StepFailed: `unsupported_by_runtime`.
        """
        totals: dict[int, npt.NDArray[np.float64]] = {}
        with prepare.runtime_failures("running the quantized model"):
            session = prepare.session(model.SerializeToString(), self._context)
            for inputs, outputs in self._expected:
                self._context.check_cancelled()
                for index, (expected, found) in enumerate(zip(outputs, session.run(None, dict(inputs)), strict=True)):
                    if expected.dtype.kind == "f":
                        wanted = expected.astype(np.float64)
                        energies = np.square(wanted).sum(), np.square(wanted - found).sum()
                        totals[index] = totals.get(index, np.zeros(2)) + energies
        noise = np.mean([own / signal if signal else float(own > 0) for signal, own in totals.values()] or [0.0])
        if not math.isfinite(noise):
            return -math.inf
        return -10 * math.log10(noise) if noise else math.inf
