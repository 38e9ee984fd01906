"""The onnx package's own node tests, run through the importer."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed")

from compression.graph.operators.dtypes import tensor_from_proto  # noqa: E402
from compression.graph.to_torch import to_torch  # noqa: E402
from tests.compression.importer.known_failures import KNOWN_FAILURES  # noqa: E402

REASONS = {name: reason for reason, names in KNOWN_FAILURES.items() for name in names}


def _eligible(test):
    values = [*test.model.graph.input, *test.model.graph.output]
    tensors = all(
        value.type.HasField("tensor_type") and value.type.tensor_type.elem_type != TensorProto.STRING
        for value in values
    )
    # Random results are no reference.
    random = "bernoulli" in test.name
    return tensors and not random and all(o.domain != "ai.onnx.preview.training" for o in test.model.opset_import)


def _load():
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases provoke overflows on purpose
        return [test for test in load_model_tests(kind="node") if _eligible(test)]


def _proto(value):
    return value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value))


def _numbers(array):
    return array if array.dtype.kind in "bc" else array.astype(np.float64)


def _compare(test):
    module = to_torch(test.model)
    for inputs, expected in test.data_sets:
        with torch.no_grad():
            results = module(*(tensor_from_proto(_proto(value)) for value in inputs))
        results = results if isinstance(results, (tuple, list)) else (results,)
        for result, reference in zip(results, expected, strict=True):
            wanted = _numbers(numpy_helper.to_array(_proto(reference)))
            plain = result.dtype in (torch.bool, torch.complex64)
            got = (result if plain else result.to(torch.float64)).numpy()
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, rtol=test.rtol, atol=test.atol)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("test", _load(), ids=lambda test: test.name)
def test_node(test):
    if test.name not in REASONS:
        _compare(test)
        return
    try:
        _compare(test)
    except Exception as error:  # noqa: BLE001  # any way to fail is the known failure
        pytest.skip(f"{REASONS[test.name]}: {type(error).__name__}")
    pytest.fail("passes now: take it off the list of known failures")
