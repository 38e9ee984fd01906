"""Datasets of pictures: order, preprocessing by hand-computed pixels, refusals."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from compression.data import DataSource, inspect_dataset, open_dataset
from compression.data.images import preprocess
from compression.data_spec import ImagePreprocessing
from compression.errors import DataRejected


def picture(color, size=(4, 4), mode="RGB", kind="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind)
    return buffer.getvalue()


def archive(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


RAW = ImagePreprocessing(height=4, width=4, dtype="uint8")


def rejection(path, preprocessing=RAW):
    with pytest.raises(DataRejected) as caught:
        inspect_dataset(DataSource(path, images=preprocessing))
    return caught.value


@pytest.mark.parametrize("top", ["", "animals/"])
def test_classes_by_name_and_pictures_in_order(tmp_path, top):
    members = {
        f"{top}dog/1.png": picture((10, 0, 0)),
        f"{top}cat/2.png": picture((30, 0, 0)),
        f"{top}cat/1.png": picture((20, 0, 0)),
        "__MACOSX/._1.png": b"junk",
        f"{top}cat/.DS_Store": b"junk",
    }
    source = DataSource(archive(tmp_path / "data", members), images=RAW)
    summary = inspect_dataset(source)
    assert (summary.format, summary.samples, summary.classes) == ("images", 3, 2)
    assert summary.class_names == ("cat", "dog")
    assert summary.arrays[0].shape == (3, 3, 4, 4)
    first, second = open_dataset(source).batches(2)
    assert first.inputs["image"][:, 0, 0, 0].tolist() == [20, 30]
    assert second.inputs["image"][:, 0, 0, 0].tolist() == [10]
    assert (first.labels.tolist(), second.labels.tolist()) == ([0, 0], [1])


def test_a_limit_reaches_every_class(tmp_path):
    members = {f"c{label}/{index}.png": picture((label, 0, 0)) for label in range(5) for index in range(20)}
    dataset = open_dataset(DataSource(archive(tmp_path / "data", members), images=RAW))
    assert [batch.labels.tolist() for batch in dataset.batches(10, 10)] == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]


def test_scale_mean_std_and_layouts():
    image = Image.new("RGB", (2, 2), (255, 51, 0))
    wanted = ImagePreprocessing(height=2, width=2, mean=(0.5, 0.1, 0.0), std=(0.5, 0.1, 2.0))
    sample = preprocess(image, wanted)
    assert sample.dtype == np.float32
    assert sample.shape == (3, 2, 2)
    np.testing.assert_allclose(sample[:, 0, 0], [(1 - 0.5) / 0.5, (0.2 - 0.1) / 0.1, 0], rtol=1e-6)
    nhwc = preprocess(image, wanted.model_copy(update={"layout": "nhwc"}))
    np.testing.assert_array_equal(nhwc, sample.transpose(1, 2, 0))


def test_channels():
    image = Image.new("RGB", (1, 1), (10, 20, 30))
    bgr = preprocess(image, ImagePreprocessing(height=1, width=1, channels="bgr", dtype="uint8"))
    assert bgr.reshape(-1).tolist() == [30, 20, 10]
    grey = preprocess(image, ImagePreprocessing(height=1, width=1, channels="grey", dtype="uint8"))
    assert grey.shape == (1, 1, 1)
    assert grey.item() == round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)


def test_shorter_side_then_centre_crop():
    # A gradient over 8 columns, 4 rows: the shorter side is 4 already, so the crop shows columns 2 to 5.
    columns = np.tile(np.arange(8, dtype=np.uint8) * 10, (4, 1))
    image = Image.fromarray(columns)
    wanted = ImagePreprocessing(height=4, width=4, resize_shorter_to=4, channels="grey", dtype="uint8")
    assert preprocess(image, wanted)[0, 0].tolist() == [20, 30, 40, 50]


def test_nearest_halves_by_picking():
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    wanted = ImagePreprocessing(height=2, width=2, interpolation="nearest", channels="grey", dtype="uint8")
    assert preprocess(image, wanted).reshape(-1).tolist() == [5, 7, 13, 15]


def test_bilinear_halves_by_a_triangle_filter():
    image = Image.fromarray(np.array([[0, 0, 160, 160]], np.uint8))
    wanted = ImagePreprocessing(height=1, width=2, channels="grey", dtype="uint8")
    # Output pixel 0 is centred on 1.0 with support 2: weights 3, 3, 1 of 7 on columns 0, 1, 2 (and 3 beyond reach).
    assert preprocess(image, wanted).reshape(-1).tolist() == [round(160 / 7), round(160 * 6 / 7)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM"])
def test_formats(tmp_path, kind):
    path = archive(tmp_path / "data", {"a/1": picture((200, 100, 50), kind=kind)})
    (batch,) = open_dataset(DataSource(path, images=RAW)).batches(1)
    np.testing.assert_allclose(batch.inputs["image"][0, :, 1, 1], [200, 100, 50], atol=4)


def test_palette_and_transparency(tmp_path):
    path = archive(tmp_path / "data", {"a/1.png": picture((9, 8, 7, 0), mode="RGBA"), "a/2.png": picture(0, mode="P")})
    (batch,) = open_dataset(DataSource(path, images=RAW)).batches(2)
    assert batch.inputs["image"][0, :, 0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize("data", [b"", b"no picture", picture(0)[:40], picture((1, 2, 3), kind="JPEG")[:100]])
def test_an_unreadable_picture_is_named(tmp_path, data):
    error = rejection(archive(tmp_path / "data", {"a/1.png": picture(0), "b/broken.png": data}))
    assert error.code == "image_unreadable"
    assert "b/broken.png" in error.message


def test_sixteen_bits_are_refused(tmp_path):
    error = rejection(archive(tmp_path / "data", {"a/1.png": picture(1000, mode="I;16")}))
    assert error.code == "image_unreadable"


def test_a_decompression_bomb(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert rejection(archive(tmp_path / "data", {"a/1.png": bomb})).code in ("archive_unsafe", "image_unreadable")
    small = header.replace(struct.pack(">I", 50_000), struct.pack(">I", 10_001))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", small) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert rejection(archive(tmp_path / "small", {"a/1.png": bomb})).code == "archive_unsafe"


@pytest.mark.parametrize(
    "names", [["1.png"], ["a/1.png", "2.png"], ["t/a/1.png", "u/b/2.png"], ["t/a/1.png", "t/2.png"], ["a/b/c/1.png"]]
)
def test_pictures_outside_class_folders(tmp_path, names):
    error = rejection(archive(tmp_path / "data", {name: picture(0) for name in names}))
    assert error.code == "not_a_dataset"


def test_preprocessing_has_to_be_stated(tmp_path):
    path = archive(tmp_path / "data", {"a/1.png": picture(0)})
    assert rejection(path, None).code == "preprocessing_missing"


def test_an_archive_without_pictures(tmp_path):
    assert rejection(archive(tmp_path / "data", {})).code == "empty_dataset"
    assert rejection(archive(tmp_path / "litter", {"a/.DS_Store": b""})).code == "empty_dataset"
