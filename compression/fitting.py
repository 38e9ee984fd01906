"""Which steps work on weights that lie in files, and which models fit into memory for all others."""

from __future__ import annotations

import onnx

from compression.context import Context
from compression.errors import StepFailed
from compression.graph.limits import LARGEST_MESSAGE
from compression.graph.skeleton import outside_bytes
from compression.graph.stored import hold_all
from compression.graph.tensors import stored_bytes
from compression.spec import Cluster, Prune, PruneChannels, QuantizeWeightOnly, Step

# A step holds the model that it is given, the one that it makes, and parts of a third while it works.
_COPIES = 3


def works_on_files(step: Step) -> bool:
    """Whether a step goes through weights one at a time and leaves them in files."""
    return isinstance(step, QuantizeWeightOnly) and step.method != "gptq"


def largest_model(step: Step, memory: int) -> int:
    """Bytes of weights up to which a step that holds the whole model can work.

    Args:
        step: What is to be done.
        memory: Bytes that the run may count on.
    """
    match step:
        case Prune(training=None, criterion="magnitude") | Cluster(training=None) | PruneChannels():
            alone = not isinstance(step, PruneChannels) or step.importance != "taylor"
        case _:
            alone = False
    # Whatever else runs a model hands it over as one message.
    return memory // _COPIES if alone else min(memory // _COPIES, LARGEST_MESSAGE)


def fitted(step: Step, index: int, model: onnx.ModelProto, context: Context) -> onnx.ModelProto:
    """The model as a step can work on it: as it is, or with the weights that lie in files read into memory.

    Raises:
        StepFailed: `model_too_large_for_step`.
    """
    if not outside_bytes(model) or works_on_files(step):
        return model
    size, limit = sum(map(stored_bytes, model.graph.initializer)), largest_model(step, context.memory)
    if size > limit:
        words = [
            step.type,
            getattr(step, "mode", ""),
            "by method 'gptq'" if isinstance(step, QuantizeWeightOnly) else "",
        ]
        raise StepFailed(
            "model_too_large_for_step",
            f"steps[{index}] ({' '.join(filter(None, words))}) holds the whole model in memory: "
            f"this one has {size:,} bytes of weights, and the step can work on {limit:,} here. What works on models "
            "larger than memory is quantize with mode 'weight_only' and method 'rtn' or 'hqq'.",
        )
    return hold_all(model)
