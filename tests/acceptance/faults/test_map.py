"""The map of failures leads to tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.acceptance import faults

ACCEPTANCE = Path(faults.__file__).parents[1]


def test_every_failure_has_tests_that_exist():
    map_ = faults.__doc__.partition("Beyond these")[0]
    numbers = [int(number) for number in re.findall(r"^ ?(\d+)\. ", map_, re.MULTILINE)]
    assert numbers == list(range(1, 16))
    for entry in re.split(r"^ ?\d+\. ", map_, flags=re.MULTILINE)[1:]:
        assert "::" in entry, entry
    for file, name in re.findall(r"(\S+\.py)::(\w+)", faults.__doc__):
        tree = ast.parse((ACCEPTANCE / file).resolve().read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
