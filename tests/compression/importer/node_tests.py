"""The onnx package's own node tests, run through the importer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, numpy_helper

from compression.graph import walk
from compression.graph.operators.dtypes import tensor_from_proto
from compression.graph.to_torch import UnsupportedOperator, to_torch

_OPTIONALS = frozenset({"Optional", "OptionalGetElement", "OptionalHasElement"})
# Results that depend on a random generator are no reference.
_RANDOM = ("bernoulli", "test_training_dropout")


@dataclass(frozen=True)
class Failure:
    """How a test was not passed: `unsupported`, `differs` (from the reference) or `crashed`."""

    kind: str
    detail: str


def eligible_tests():
    """All node tests that hold neither strings, sequences, optionals, training operators nor random results."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases provoke overflows on purpose
        return [test for test in load_model_tests(kind="node") if _is_eligible(test)]


def _is_eligible(test):
    values = [*test.model.graph.input, *test.model.graph.output]
    tensors = all(
        value.type.HasField("tensor_type") and value.type.tensor_type.elem_type != TensorProto.STRING
        for value in values
    )
    optional = any(node.op_type in _OPTIONALS for node in walk.nodes(test.model))
    random = any(name in test.name for name in _RANDOM) and "zero_ratio" not in test.name
    training = any(entry.domain == "ai.onnx.preview.training" for entry in test.model.opset_import)
    return tensors and not optional and not random and not training


def outcome(test, *, rtol=None, atol=None, against_runtime=False):
    """None when the imported module gives the reference's results, else a `Failure`.

    Args:
        test: One of `eligible_tests`.
        rtol: Instead of the test's own.
        atol: Likewise.
        against_runtime: Compare with ONNX Runtime's results instead of the stored ones.
    """
    try:
        module = to_torch(test.model)
    except UnsupportedOperator as error:
        return Failure("unsupported", str(error))
    for inputs, stored in test.data_sets:
        protos = [_proto(value) for value in inputs]
        expected = _runtime(test.model, protos) if against_runtime else [_array(_proto(value)) for value in stored]
        try:
            with torch.no_grad():
                results = module(*(tensor_from_proto(proto) for proto in protos))
        except Exception as error:  # noqa: BLE001  # counted, not hidden
            return Failure("crashed", f"{type(error).__name__}: {error}")
        results = results if isinstance(results, (tuple, list)) else (results,)
        try:
            for result, wanted in zip(results, expected, strict=True):
                _compare(result, wanted, rtol or test.rtol, atol or test.atol)
        except AssertionError as error:
            return Failure("differs", str(error))
    return None


def _proto(value):
    return value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value))


def _array(proto):
    return numpy_helper.to_array(proto)


def _runtime(model, protos):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, [_array(proto) for proto in protos], strict=True)))


def _compare(result, wanted, rtol, atol):
    wanted = wanted if wanted.dtype.kind in "bc" else wanted.astype(np.float64)
    plain = result.dtype in (torch.bool, torch.complex64)
    got = (result if plain else result.to(torch.float64)).numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)
