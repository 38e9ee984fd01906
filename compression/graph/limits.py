"""How much of a machine a model may ask for, before anything is allocated on its word."""

from __future__ import annotations

from dataclasses import dataclass

# A protobuf message ends at 2 GiB; a little is left for the graph itself.
LARGEST_MESSAGE = 2**31 - 2**20
# Tensors of fewer bytes are in memory even where a model's external data stays in its files.
SMALLEST_OUTSIDE = 2**20
# Domains whose operators ONNX Runtime itself implements. Others need custom libraries, which are code.
ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


@dataclass(frozen=True)
class Limits:
    """Caps on an uploaded model.

    Attributes:
        max_bytes: Bytes of one file that holds a model. A protobuf message ends at 2 GiB.
        max_total_bytes: Bytes of the graph and all its external data together.
        max_held_bytes: Bytes of external data, where all of it is read into memory.
        max_nodes: Nodes, those of subgraphs and of expanded functions included.
        max_parts: Fields of all messages in a file, of every kind and at every depth.
        max_initializers: Stored tensors, those of subgraphs included.
        max_depth: Levels of subgraphs inside subgraphs.
        max_modules: Layers of an architecture that is built for a `state_dict`.
        max_activation_bytes: Bytes of one intermediate tensor whose shape the graph fixes.
    """

    max_bytes: int = LARGEST_MESSAGE
    max_total_bytes: int = 2**36
    max_held_bytes: int = 2**32
    max_nodes: int = 200_000
    max_parts: int = 12_800_000
    max_initializers: int = 200_000
    max_depth: int = 8
    max_modules: int = 20_000
    max_activation_bytes: int = 2**33


DEFAULT_LIMITS = Limits()
