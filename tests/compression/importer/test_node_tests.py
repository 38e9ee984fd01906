"""The onnx package's own node tests are passed, or fail in the stated way."""

from __future__ import annotations

import pytest

from tests.compression.importer.known_failures import AS_ONNX_RUNTIME, ROUNDING, UNSUPPORTED
from tests.compression.importer.node_tests import eligible_tests, outcome

TESTS = eligible_tests()
NAMES = {test.name for test in TESTS}
TOLERANCES = {name: limits for limits, reasons in ROUNDING.items() for names in reasons.values() for name in names}
LIKE_RUNTIME = {name for names in AS_ONNX_RUNTIME.values() for name in names}
WITHOUT = {name for names in UNSUPPORTED.values() for name in names}


def test_lists_name_tests_that_exist():
    assert not (TOLERANCES.keys() | LIKE_RUNTIME | WITHOUT) - NAMES


def test_all_but_two_percent_are_computed_as_the_reference_does():
    assert len(WITHOUT | LIKE_RUNTIME) < 0.02 * len(TESTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_node(test):
    found = outcome(test)
    if test.name in WITHOUT:
        assert found is not None
        assert found.kind == "unsupported", found.detail
    elif test.name in LIKE_RUNTIME:
        assert found is not None, "passes now: take it off the list"
        assert found.kind == "differs", found.detail
        assert outcome(test, against_runtime=True) is None
    elif test.name in TOLERANCES:
        assert found is not None, "passes now: take it off the list"
        relative, absolute = TOLERANCES[test.name]
        assert outcome(test, rtol=relative, atol=absolute) is None
    else:
        assert found is None, f"{found.kind}: {found.detail}"
