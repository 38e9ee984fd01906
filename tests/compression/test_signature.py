"""Whether a dataset can be fed to a model."""

from __future__ import annotations

import pytest

from compression.graph.inspect import summarize
from compression.signature import DatasetSummary, TensorSpec, mismatches
from tests.compression import models


def dataset(**arrays):
    specs = tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in arrays.items())
    return DatasetSummary(format="npz", samples=7, arrays=specs, has_labels=False, classes=None, bytes=1)


CNN = summarize(models.cnn(), 0, 0)
TWO = summarize(models.two_inputs(), 0, 0)
IDS = summarize(models.embedding(), 0, 0)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (CNN, dataset(x=("float32", (7, 1, 8, 8)))),
        (CNN, dataset(anything=("float32", (7, 1, 8, 8)))),
        (TWO, dataset(b=("float32", (7, 6)), a=("float32", (7, 4)))),
        (IDS, dataset(ids=("int64", (7, 33)))),
    ],
)
def test_what_fits(model, data):
    assert mismatches(model, data) == []


@pytest.mark.parametrize(
    ("model", "data", "problems"),
    [
        (CNN, dataset(x=("float64", (7, 1, 8, 8))), ["input 'x' takes float32, the dataset holds float64"]),
        (CNN, dataset(x=("float32", (7, 64))), ["input 'x' has 4 axes, the dataset's array has 2"]),
        (
            CNN,
            dataset(x=("uint8", (7, 3, 8, 9))),
            [
                "input 'x' takes float32, the dataset holds uint8",
                "axis 1 of input 'x' is 1, the dataset's is 3",
                "axis 3 of input 'x' is 8, the dataset's is 9",
            ],
        ),
        (
            TWO,
            dataset(a=("float32", (7, 4)), c=("float32", (7, 6))),
            ["input 'b' has no array of that name (the dataset has: a, c)", "array 'c' is no input of the model"],
        ),
    ],
)
def test_all_that_does_not_fit_is_listed(model, data, problems):
    assert mismatches(model, data) == problems
