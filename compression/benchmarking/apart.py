"""Outputs of models that do not fit into memory together: one after the other, each in a process that maps its file."""

from __future__ import annotations

import itertools
from pathlib import Path

from compression.benchmarking.quality import Comparison, compare
from compression.benchmarking.subject import Subject
from compression.fresh_process import Array
from compression.runtime import Outputs
from compression.verification import Verifier


class _Apart:
    """A model that is in memory while it runs, and then as far as the system can spare it."""

    def __init__(self, path: Path, subject: Subject) -> None:
        self._path = path
        self._subject = subject

    def run(self, arrays: dict[str, Array]) -> Outputs:
        with Verifier(self._subject.context.workdir, threads=self._subject.threads) as process:
            return list(process.outputs(self._path, arrays).values())


def compare_apart(subject: Subject) -> Comparison:
    """Compare what both models give for the first batch of samples, without judging it.

    Raises:
        StepFailed: `verification_failed` when a model does not run.
        DataRejected: No inputs can be made up.
    """
    original, result = _Apart(subject.original, subject), _Apart(subject.compressed, subject)
    batches = itertools.islice(subject.inputs.compared(), 1)
    return compare(original, result, batches, subject.context, task=subject.spec.task, pad_to=subject.inputs.fixed)
