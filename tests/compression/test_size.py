"""Sizes against gzip itself and counts by hand."""

from __future__ import annotations

import doctest
import gzip

import numpy as np
import pytest

from compression.benchmarking import size
from compression.context import Context
from compression.errors import Cancelled
from compression.graph.inspect import inspect_model
from tests.compression.models import mlp, save


def test_gzip_size_is_that_of_gzip(tmp_path):
    data = np.random.default_rng(0).integers(0, 20, 3_000_000).astype(np.uint8).tobytes()
    (tmp_path / "file").write_bytes(data)
    for level in (6, 9):
        assert size.gzip_size(tmp_path / "file", level, Context(tmp_path)) == len(gzip.compress(data, level))


def test_metrics_by_hand(tmp_path):
    original = save(mlp(features=64, hidden=128), tmp_path / "original.onnx")
    compressed = save(mlp(features=64, hidden=32), tmp_path / "compressed.onnx")
    metrics, notes = size.size_metrics(
        original, compressed, inspect_model(original), inspect_model(compressed), Context(tmp_path)
    )
    by_name = {metric.name: metric for metric in metrics}
    # 64 * h + h + h * 10 + 10 parameters and 64 * h + h * 10 products.
    assert (by_name["parameters"].original, by_name["parameters"].result) == (9610, 2410)
    assert (by_name["macs"].original, by_name["macs"].result) == (9472, 2368)
    assert by_name["macs"].verdict == "4.00x smaller"
    assert by_name["file_bytes"].original == original.stat().st_size
    assert by_name["file_bytes"].ratio == original.stat().st_size / compressed.stat().st_size
    assert by_name["gzip_bytes"].result == len(gzip.compress(compressed.read_bytes(), 9))
    assert notes == []


def test_growth_is_said_in_words(tmp_path):
    (tmp_path / "small").write_bytes(bytes(1000))
    (tmp_path / "large").write_bytes(bytes(1250))
    summary = inspect_model(save(mlp(), tmp_path / "model.onnx"))
    metrics, notes = size.size_metrics(tmp_path / "small", tmp_path / "large", summary, summary, Context(tmp_path))
    assert metrics[0].verdict == "1.25x larger"
    assert metrics[2].verdict == "the same"
    assert notes == ["The file grew by 25.0%: what the steps added weighs more than what they saved."]


def test_large_files_are_packed_less_hard_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(size, "_LEVEL_9_UP_TO", 1100)
    (tmp_path / "small").write_bytes(bytes(1000))
    (tmp_path / "large").write_bytes(bytes(1250))
    assert size.gzip_level(1000) == 9
    summary = inspect_model(save(mlp(), tmp_path / "model.onnx"))
    notes = size.size_metrics(tmp_path / "large", tmp_path / "small", summary, summary, Context(tmp_path))[1]
    assert notes == ["Sizes after gzip are those of level 6, because a file is larger than 64 MB."]


def test_unknown_macs_are_left_out_and_nothing_is_divided_by_zero(tmp_path):
    path = save(mlp(), tmp_path / "model.onnx")
    summary = inspect_model(path)
    empty = summary.model_copy(update={"macs": None, "nonzero_parameters": 0})
    metrics = {metric.name: metric for metric in size.size_metrics(path, path, summary, empty, Context(tmp_path))[0]}
    assert "macs" not in metrics
    assert metrics["nonzero_parameters"].ratio is None


def test_can_be_cancelled(tmp_path):
    (tmp_path / "file").write_bytes(bytes(10))
    with pytest.raises(Cancelled):
        size.gzip_size(tmp_path / "file", 9, Context(tmp_path, is_cancelled=lambda: True))


def test_examples():
    assert doctest.testmod(size).failed == 0


def test_huge_files_are_packed_in_part(tmp_path, monkeypatch):
    """Of eight blocks the first and the fifth do not shrink; every other block is looked at, half of which do not."""
    block, noise = size._BLOCK, np.random.default_rng(0).bytes(size._BLOCK)
    (tmp_path / "m").write_bytes((noise + bytes(3 * block)) * 2)
    assert size.gzip_size(tmp_path / "m", 6, Context(tmp_path)) == pytest.approx(2 * block, rel=0.02)
    monkeypatch.setattr(size, "_WHOLE_UP_TO", 4 * block)
    monkeypatch.setattr(size, "_SAMPLED_BLOCKS", 4)
    assert size.gzip_size(tmp_path / "m", 6, Context(tmp_path)) == pytest.approx(4 * block, rel=0.02)
    summary = inspect_model(save(mlp(), tmp_path / "model.onnx"))
    notes = size.size_metrics(tmp_path / "m", tmp_path / "m", summary, summary, Context(tmp_path))[1]
    assert notes[-1] == "Sizes after gzip of files above 1 GB are estimates from 256 MB, spread evenly over each."
