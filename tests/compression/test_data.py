"""Datasets of arrays: what is read back, and what is refused by which code."""

from __future__ import annotations

import doctest
import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from compression.data import (
    DataSource,
    base,
    check_labels,
    detect_format,
    inspect_dataset,
    open_dataset,
    synthetic_batches,
)
from compression.data.base import spread
from compression.data.feed import ModelFeed
from compression.errors import DataRejected
from compression.graph.inspect import summarize
from tests.compression import models


def save(path, arrays, kind):
    if kind == "safetensors":
        safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
    elif kind == "npz":
        np.savez(path.with_suffix(".npz"), **arrays)
        path.with_suffix(".npz").rename(path)
    else:
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
        path.with_suffix(".npz").rename(path)
    return DataSource(path)


KINDS = pytest.mark.parametrize("kind", ["safetensors", "npz", "compressed"])


def samples(count=23):
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((count, 3, 4)).astype(np.float32),
        "ids": rng.integers(0, 9, (count, 2)),
        "labels": rng.integers(0, 5, count).astype(np.int32),
    }


def rejection(source):
    with pytest.raises(DataRejected) as caught:
        inspect_dataset(source)
    return caught.value.code


@KINDS
@pytest.mark.parametrize("limit", [None, 1, 7, 22, 23, 100])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_give_back_what_was_saved(tmp_path, kind, limit, batch_size):
    arrays = samples()
    dataset = open_dataset(save(tmp_path / "data", arrays, kind))
    batches = list(dataset.batches(batch_size, limit))
    rows = spread(23, limit)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for name in ("x", "ids"):
        joined = np.concatenate([batch.inputs[name] for batch in batches])
        np.testing.assert_array_equal(joined, arrays[name][rows])
        assert joined.dtype == arrays[name].dtype
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), arrays["labels"][rows])
    assert batches[0].labels.dtype == np.int64


@KINDS
def test_summary(tmp_path, kind):
    source = save(tmp_path / "data", samples(), kind)
    found = inspect_dataset(source)
    assert found.format == ("npz" if kind == "compressed" else kind)
    assert (found.samples, found.has_labels, found.classes) == (23, True, 5)
    assert [(a.name, a.dtype, a.shape) for a in found.arrays] == [
        ("ids", "int64", (23, 2)),
        ("x", "float32", (23, 3, 4)),
    ]
    assert found.bytes == source.path.stat().st_size


def test_a_limit_takes_samples_from_the_whole_dataset():
    assert spread(1000, 4).tolist() == [0, 250, 500, 750]
    assert spread(3, 10).tolist() == [0, 1, 2]


def test_column_major_and_big_endian_arrays(tmp_path):
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((9, 4)))
    big = np.arange(9, dtype=">i2")
    dataset = open_dataset(save(tmp_path / "data", {"x": x, "big": big}, "npz"))
    batches = list(dataset.batches(4, 6))
    np.testing.assert_array_equal(np.concatenate([batch.inputs["x"] for batch in batches]), x[spread(9, 6)])
    np.testing.assert_array_equal(np.concatenate([batch.inputs["big"] for batch in batches]), big[spread(9, 6)])
    assert batches[0].inputs["big"].dtype == np.dtype("=i2")
    assert batches[0].labels is None


@pytest.mark.parametrize("kind", ["npz", "compressed"])
def test_npz_is_streamed(tmp_path, kind):
    source = save(tmp_path / "data", {"x": np.ones((64, 1 << 18), np.float32)}, kind)  # 64 MiB
    tracemalloc.start()
    try:
        total = sum(float(batch.inputs["x"].sum()) for batch in open_dataset(source).batches(4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 * (1 << 18)
    assert peak < 24 << 20


def test_the_bytes_decide_not_the_name(tmp_path):
    path = tmp_path / "data.npz"
    save(path, samples(), "safetensors")
    assert detect_format(path) == "safetensors"
    assert rejection(DataSource(path, format="npz")) == "not_a_dataset"


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"PK\x03\x04junk", b"\x80\x04K\x01.", struct.pack("<Q", 1 << 40) + b"{", b"\x93NUMPY\x01\x00"],
)
def test_other_bytes(tmp_path, data):
    (tmp_path / "data").write_bytes(data)
    assert rejection(DataSource(tmp_path / "data")) == "not_a_dataset"


@KINDS
def test_truncated(tmp_path, kind):
    source = save(tmp_path / "data", samples(), kind)
    whole = source.path.read_bytes()
    for end in (len(whole) // 3, len(whole) - 1):
        source.path.write_bytes(whole[:end])
        assert rejection(source) == "not_a_dataset"


@pytest.mark.parametrize("offsets", [[0, 1000], [-4, 0], [4, 0], [0, 4]])
def test_safetensors_offsets_that_lie(tmp_path, offsets):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    (tmp_path / "data").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert rejection(DataSource(tmp_path / "data")) == "not_a_dataset"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@KINDS
def test_non_finite_values_are_located(tmp_path, kind, value):
    arrays = samples()
    arrays["x"][17, 2, 1] = value
    arrays["x"][20, 0, 0] = value
    with pytest.raises(DataRejected, match=r"Array 'x' holds -?(nan|inf) at index \[17, 2, 1\]") as caught:
        inspect_dataset(save(tmp_path / "data", arrays, kind))
    assert caught.value.code == "non_finite_values"


@KINDS
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"x": np.zeros((22, 3), np.float32)}, "lengths_differ"),
        ({"x": np.float32(3)}, "lengths_differ"),
        ({"labels": np.zeros(22, np.int64)}, "lengths_differ"),
        ({"labels": np.zeros(23, np.float32)}, "labels_invalid"),
        ({"labels": np.zeros(23, bool)}, "labels_invalid"),
        ({"labels": np.zeros((23, 1), np.int64)}, "labels_invalid"),
        ({"labels": np.arange(23) - 1}, "labels_invalid"),
        ({"labels": np.full(23, 1 << 40)}, "labels_invalid"),
    ],
)
def test_arrays_that_do_not_go_together(tmp_path, kind, change, code):
    assert rejection(save(tmp_path / "data", samples() | change, kind)) == code


@KINDS
@pytest.mark.parametrize("arrays", [{"labels": np.zeros(3, np.int64)}, {"x": np.zeros((0, 3), np.float32)}])
def test_empty(tmp_path, kind, arrays):
    assert rejection(save(tmp_path / "data", arrays, kind)) == "empty_dataset"


@pytest.mark.parametrize("value", [np.array(["a", "b"]), np.zeros(2, np.complex64), np.zeros(2, "datetime64[s]")])
def test_dtypes_that_are_no_numbers(tmp_path, value):
    assert rejection(save(tmp_path / "data", {"x": value}, "npz")) == "dtype_not_supported"


def test_bfloat16_is_refused(tmp_path):
    import ml_dtypes

    source = save(tmp_path / "data", {"x": np.zeros((2, 2), ml_dtypes.bfloat16)}, "safetensors")
    assert rejection(source) == "dtype_not_supported"


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickles_are_never_read(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([Bomb(), Bomb()], dtype=object))
    assert rejection(DataSource(tmp_path / "data.npz")) == "dtype_not_supported"


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return DataSource(path)


def npy(value):
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "a\\x.npy"])
def test_paths_out_of_the_archive(tmp_path, name):
    assert rejection(archive(tmp_path / "data", {name: npy(np.zeros(3))})) == "archive_unsafe"


def test_a_zip_bomb(tmp_path):
    source = archive(tmp_path / "data", {"x.npy": bytes(150 << 20)}, zipfile.ZIP_DEFLATED)
    assert source.path.stat().st_size < 1 << 20
    assert rejection(source) == "archive_unsafe"


def test_other_compression(tmp_path):
    source = archive(tmp_path / "data", {"x.npy": npy(np.zeros(3))}, zipfile.ZIP_BZIP2)
    assert rejection(source) == "archive_unsafe"


def test_a_header_that_declares_more_than_there_is(tmp_path):
    data = npy(np.zeros((4, 4))).replace(b"(4, 4)", b"(9, 9)")
    assert rejection(archive(tmp_path / "data", {"x.npy": data})) == "not_a_dataset"


def test_a_member_that_is_no_array(tmp_path):
    assert rejection(archive(tmp_path / "data", {"x.npy": b"nonsense"})) == "not_a_dataset"
    assert rejection(archive(tmp_path / "data", {"x.npy": npy(np.zeros(3)), "readme.txt": b"hi"})) == "not_a_dataset"


def test_a_flipped_bit_is_found(tmp_path):
    source = save(tmp_path / "data", {"x": np.zeros((100, 100), np.float32)}, "npz")
    data = bytearray(source.path.read_bytes())
    data[20_000] ^= 1
    source.path.write_bytes(data)
    assert rejection(source) == "not_a_dataset"


def test_labels_beyond_the_outputs_of_a_classifier(tmp_path):
    model = summarize(models.cnn(), 0, 0)  # 10 classes
    x = np.zeros((3, 1, 8, 8), np.float32)
    good = inspect_dataset(save(tmp_path / "good", {"x": x, "labels": np.array([0, 5, 9])}, "npz"))
    check_labels(good, model)
    bad = inspect_dataset(save(tmp_path / "bad", {"x": x, "labels": np.array([0, 5, 10])}, "npz"))
    with pytest.raises(DataRejected, match=r"labels up to 10.*has 10 classes") as caught:
        check_labels(bad, model)
    assert caught.value.code == "labels_out_of_range"


def test_feed_renames_the_only_array_and_lists_all_that_does_not_fit(tmp_path):
    model = summarize(models.cnn(), 0, 0)
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    feed = ModelFeed(open_dataset(save(tmp_path / "one", {"pictures": x}, "npz")), model, "evaluation")
    np.testing.assert_array_equal(next(feed.batches(3)).inputs["x"], x[:3])
    wrong = open_dataset(save(tmp_path / "two", {"pictures": x.astype(np.float64)[..., :7]}, "npz"))
    with pytest.raises(DataRejected, match=r"takes float32, .* float64; axis 3 .* is 8, the dataset's is 7") as caught:
        ModelFeed(wrong, model, "calibration")
    assert caught.value.code == "dataset_mismatch"
    assert "calibration" in caught.value.message


def test_feed_checks_values_as_they_pass(tmp_path):
    x = np.zeros((6, 1, 8, 8), np.float32)
    x[4, 0, 1, 2] = np.nan
    feed = ModelFeed(open_dataset(save(tmp_path / "x", {"x": x}, "npz")), summarize(models.cnn(), 0, 0), "evaluation")
    with pytest.raises(DataRejected, match=r"\[4, 0, 1, 2\]"):
        list(feed.batches(2))


@pytest.mark.parametrize(("whole_batches", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_feed_keeps_to_a_fixed_batch(tmp_path, whole_batches, sizes):
    model = summarize(models.cnn(batch=4), 0, 0)
    dataset = open_dataset(save(tmp_path / "x", {"x": np.zeros((10, 1, 8, 8), np.float32)}, "npz"))
    feed = ModelFeed(dataset, model, "evaluation", whole_batches=whole_batches)
    assert [len(batch) for batch in feed.batches(64)] == sizes
    few = open_dataset(save(tmp_path / "few", {"x": np.zeros((3, 1, 8, 8), np.float32)}, "npz"))
    with pytest.raises(DataRejected, match="4 samples at a time"):
        ModelFeed(few, model, "evaluation")


def test_synthetic_inputs_run(tmp_path):
    import onnxruntime

    for model in (models.cnn(), models.cnn(batch=2), models.embedding(), models.two_inputs()):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        batches = list(synthetic_batches(summarize(model, 0, 0), 5, seed=3, batch_size=2))
        assert sum(map(len, batches)) in (5, 6)
        for batch in batches:
            (output,) = session.run(None, batch.inputs)
            assert len(output) == len(batch)
    again = list(synthetic_batches(summarize(models.two_inputs(), 0, 0), 5, seed=3, batch_size=2))
    np.testing.assert_array_equal(again[1].inputs["b"], batches[1].inputs["b"])


def test_synthetic_axes_of_one_name_have_one_length():
    nodes = [models.helper.make_node("MatMul", ["mask", "x"], ["y"])]
    model = models.make_model(
        nodes,
        [models.value("mask", ["b", "h", "tokens", "tokens"]), models.value("x", ["tokens", 3])],
        [models.value("y", ["b", "h", "tokens", 3])],
        {},
    )
    summary = summarize(model, 0, 0)
    batch = next(synthetic_batches(summary, 4, seed=0))
    assert batch.inputs["mask"].shape[0] == 4
    assert batch.inputs["mask"].shape[2] == batch.inputs["mask"].shape[3]


def test_examples():
    found = doctest.testmod(base)
    assert (found.failed, found.attempted > 0) == (0, True)
