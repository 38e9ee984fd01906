"""From an ONNX file to a `.levity` file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from compression.coding import container, splice
from compression.coding.coders import BY_NAME, CoderName
from compression.coding.plan import make_plan
from compression.coding.write import write


class StreamReport(NamedTuple):
    """One tensor in the file.

    Attributes:
        name: Of the tensor; empty in attributes of nodes.
        shape: Its dimensions.
        form: `planes`, `codebook`, `sparse`, `sparse, codebook` or `stored`.
        raw_bytes: In the ONNX file.
        coded_bytes: In the `.levity` file.
        entropy_bits: Of its symbols by their own frequencies in the contexts used.
    """

    name: str
    shape: tuple[int, ...]
    form: str
    raw_bytes: int
    coded_bytes: int
    entropy_bits: float

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return max(1, math.prod(self.shape))


class Encoded(NamedTuple):
    """A `.levity` file and what is in it.

    Attributes:
        data: The file.
        graph_bytes: The graph without weights, as stored.
        table_bytes: Frequencies or code lengths, as stored.
        streams: The tensors.
    """

    data: bytes
    graph_bytes: int
    table_bytes: int
    streams: list[StreamReport]


def _nobody() -> None:
    """Nobody asks to stop."""


def encode(model: bytes, *, coder: CoderName = "rans", between: Callable[[], None] = _nobody) -> Encoded:
    """Code an ONNX file so that `compression.coding.decode.decode` gives back the very same bytes.

    Args:
        model: The file, complete in itself: external data stays where it is and is not coded.
        coder: `rans`, or `huffman` as in Deep Compression.
        between: Called before each tensor; may raise to stop.

    Raises:
        Damage: `levity_corrupted` when the bytes are no protobuf message.
    """
    holes = splice.find_holes(model, cut=False)
    graph, data = splice.without_data(model, holes)
    plans = []
    for hole, part in zip(holes, data, strict=True):
        between()
        plans.append(make_plan(hole, part))
    rows, written = write(plans, BY_NAME[coder])
    file = container.assemble(model, graph, rows, [one.data for one in written], BY_NAME[coder])
    head = container.read_head(memoryview(file), len(model))
    reports = [
        StreamReport(hole.name, hole.dims, one.form, hole.size, len(one.data), one.entropy_bits)
        for hole, one in zip(holes, written, strict=True)
    ]
    return Encoded(file, head.graph[1] - head.graph[0], head.tables[1] - head.tables[0], reports)
