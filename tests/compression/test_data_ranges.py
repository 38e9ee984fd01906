"""Datasets on different scales are told apart, those on the same are not."""

from __future__ import annotations

import numpy as np
import pytest

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.data.feed import ModelFeed
from compression.data.ranges import Spread, differing_ranges
from compression.graph.inspect import summarize
from compression.pipeline import run
from compression.quantization.static import quantize_static
from compression.spec import PipelineSpec, QuantizeStatic
from tests.compression.models import cnn, save
from tests.compression.quantizing import dataset


def feed(folder, role, x):
    np.savez(folder / f"{role}.npz", x=x.astype(np.float32))
    return ModelFeed(open_dataset(DataSource(folder / f"{role}.npz")), summarize(cnn(), 0, 0), role)


def pictures(seed, count=80):
    return np.random.default_rng(seed).random((count, 1, 8, 8))


def test_bytes_beside_shares(tmp_path):
    feeds = {
        "calibration": feed(tmp_path, "calibration", 255 * pictures(0)),
        "evaluation": feed(tmp_path, "e", pictures(1)),
    }
    (note,) = differing_ranges(feeds)
    assert note.startswith("Input 'x' is [")
    assert "in the calibration dataset and [" in note
    assert differing_ranges({"calibration": feeds["calibration"]}) == []


@pytest.mark.parametrize("other", [lambda x: x, lambda x: x[:3], lambda x: 1.5 * x - 0.2])
def test_samples_of_the_same_kind(other, tmp_path):
    feeds = {"training": feed(tmp_path, "t", other(pictures(0))), "evaluation": feed(tmp_path, "e", pictures(1))}
    assert differing_ranges(feeds) == []


def test_what_counts_as_another_scale():
    unit = Spread(-1, 1, 0.0, 1.0)
    assert not unit.differs(Spread(-3, 3, 0.0, 3.9))
    assert unit.differs(Spread(-4, 4, 0.0, 4.1))
    assert unit.differs(Spread(9, 11, 10.0, 1.0))
    assert not unit.differs(Spread(0, 4, 2.0, 1.0))
    assert Spread(1, 1, 1.0, 0.0).differs(Spread(0, 0, 0.0, 0.0))
    assert not Spread(1, 1, 1.0, 0.0).differs(Spread(1, 1, 1.0, 0.0))


def test_the_report_says_so(tmp_path):
    save(cnn(), tmp_path / "model.onnx")
    np.savez(tmp_path / "c.npz", x=255 * pictures(0).astype(np.float32))
    np.savez(tmp_path / "e.npz", x=pictures(1).astype(np.float32))
    spec = PipelineSpec(steps=[{"type": "quantize", "mode": "static"}], benchmark={"max_seconds": 0.2, "min_rounds": 5})
    data = {"calibration": DataSource(tmp_path / "c.npz"), "evaluation": DataSource(tmp_path / "e.npz")}
    result = run(tmp_path / "model.onnx", spec, Context(tmp_path, threads=1), data)
    assert any("preprocessed alike" in note for note in result.notes)


def test_activations_that_never_move_are_named(tmp_path):
    data = dataset(tmp_path, x=np.zeros((8, 1, 8, 8), np.float32))
    _, details = quantize_static(cnn(), QuantizeStatic(), Context(tmp_path, threads=1), data)
    assert any("'x'" in note and "one and the same value" in note for note in details["notes"])
    assert all(np.isfinite([row["lowest"], row["highest"]]).all() for row in details["activations"])
