"""Everything that can go wrong inside a compression run, as named errors with stable codes."""

from __future__ import annotations


class CompressionError(Exception):
    """A run cannot go on because of its input or its environment.

    Args:
        code: Stable machine-readable identifier, lower_snake_case (`not_onnx`, `dataset_mismatch`, …).
        message: One or two sentences for a person: what was wrong, where, what would work.
        retryable: True when the same input may succeed at another time or on another machine.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


class ModelRejected(CompressionError):
    """The bytes are not a model that Levity accepts."""


class DataRejected(CompressionError):
    """The bytes are not a dataset that Levity accepts, or it does not fit the model."""


class StepFailed(CompressionError):
    """A step of the pipeline cannot be applied to this model."""


class Cancelled(Exception):
    """The caller asked for the run to stop, and it did: a request that was honoured rather than an error."""
