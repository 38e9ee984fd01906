"""The corpus against the library alone; `tests/acceptance/test_hostile.py` sends it through the service."""

from __future__ import annotations

import pytest

from compression.coding.decode import decode_file
from compression.data import DataSource, inspect_dataset
from compression.data_spec import ImagePreprocessing
from compression.errors import CompressionError
from compression.graph.architectures.convert import convert
from compression.graph.architectures.formats import is_levity
from compression.graph.architectures.spec import ModelSource
from compression.graph.inspect import inspect_model
from tests.hostile.corpus import cases
from tests.hostile.watch import watching


def look_into(case, lure, folder):
    """What `workers.execution` does."""
    files = folder / "in"
    files.mkdir()
    path = files / "model.onnx"
    path.write_bytes(case.content(lure))
    for name, make in case.beside.items():
        (files / name).write_bytes(make(lure))
    if case.kind == "datasets":
        images = case.body.get("images")
        inspect_dataset(DataSource(path, None, images and ImagePreprocessing.model_validate(images)))
    elif "architecture" in case.body:
        convert(path, ModelSource.model_validate(case.body), folder / "out")
    elif is_levity(path):
        inspect_model(decode_file(path, folder / "out"))
    else:
        inspect_model(path)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=pytest.mark.long if "million" in case.name else ()) for case in cases()],
)
def test_hostile_file(case, tmp_path):
    with watching(tmp_path) as watch:
        outcome, message = None, ""
        try:
            look_into(case, watch.lure, tmp_path)
        except CompressionError as error:
            outcome, message = error.code, error.message
        assert watch.lure.secret not in message
        assert watch.happened() == set()
    assert outcome in (case.codes or {None})
