"""Datasets that grow, reach outside or hold code."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.fuzz import seeds
from tests.hostile.case import Case, Lure, Payload, codes, constant

IMAGES = {"images": {"width": 8, "height": 8}}
_UNSAFE = codes("archive_unsafe")
_NO_DATA = codes("not_a_dataset")
_MIB = 2**20


def cases() -> list[Case]:
    """All of them."""
    return [*_npz(), *_pictures()]


def _data(name: str, wanted: frozenset[str], data: bytes) -> Case:
    return Case(name, wanted, constant(data), "datasets", filename="data.npz")


def _npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    width = "<H" if version[0] == 1 else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(text)) + text + data


def _declaring(shape: str, descr: str = "'<f4'", order: str = "False", data: bytes = bytes(16)) -> bytes:
    return seeds.zip_of(
        [("image.npy", _npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}", data))]
    )


def _npz() -> list[Case]:
    image = seeds.npy(np.ones((6, 2), np.float32))
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 32), }"
    zeros = _npy(shape, bytes(128 * _MIB))
    stored = {
        "64 GiB declared": (_NO_DATA, _declaring("(131072, 131072)")),
        "negative length": (_NO_DATA, _declaring("(-4,)")),
        "product of lengths beyond 2^64": (_NO_DATA, _declaring("(4611686018427387904, 4)")),
        "by columns, 64 GiB": (_NO_DATA, _declaring("(131072, 131072)", order="True")),
        "text": (codes("dtype_not_supported"), _declaring("(1,)", "'<U4'")),
        "records with objects": (codes("dtype_not_supported"), _declaring("(1,)", "[('a', '|O'), ('b', '<f8')]")),
        "expression as a header": (_NO_DATA, seeds.zip_of([("a.npy", _npy("__import__('os').system('true')"))])),
        "header of a million parentheses": (
            _NO_DATA,
            seeds.zip_of([("a.npy", _npy("(" * 1_000_000, version=b"\x02\x00"))]),
        ),
        "header beyond the end": (_NO_DATA, seeds.zip_of([("a.npy", b"\x93NUMPY\x01\x00\xff\xff{}")])),
        "array that deflates to nothing": (_UNSAFE, seeds.zip_of([("image.npy", zeros)], zipfile.ZIP_DEFLATED)),
        "1,001 members": (_UNSAFE, seeds.zip_of([(f"{index}.npy", image) for index in range(1001)])),
        "path upwards": (_UNSAFE, seeds.zip_of([("../../image.npy", image)])),
        "absolute path": (_UNSAFE, seeds.zip_of([("/etc/image.npy", image)])),
        "bzip2": (_UNSAFE, seeds.zip_of([("image.npy", image)], zipfile.ZIP_BZIP2)),
        "lzma": (_UNSAFE, seeds.zip_of([("image.npy", image)], zipfile.ZIP_LZMA)),
        "archive in an archive": (_NO_DATA, seeds.zip_of([("image.npy", seeds.zip_of([("image.npy", image)]))])),
        "member twice": (_NO_DATA, _doubled(image)),
        "members that overlap": (_UNSAFE, overlapping()),
        "size of 2^32 - 1": (codes("not_a_dataset", "archive_unsafe"), _patched(image, b"PK\x01\x02", 24, 2**32 - 2)),
        "other size than in the member": (
            codes("not_a_dataset", "archive_unsafe"),
            _patched(image, b"PK\x01\x02", 20, 7),
        ),
        "directory beyond the end": (_NO_DATA, _patched(image, b"PK\x05\x06", 16, 2**31)),
        "encrypted": (_UNSAFE, _encrypted(image)),
        "polyglot of a picture and an archive": (_NO_DATA, seeds.picture("GIF") + seeds.zip_of([("image.npy", image)])),
        "name that is no UTF-8": (
            codes(),
            seeds.zip_of([("image.npy", image)]).replace(b"image.npy", b"im\xff\xfee.npy"),
        ),
    }
    return [
        *(_data(f"npz: {name}", wanted, data) for name, (wanted, data) in stored.items()),
        Case(
            "npz: pickled objects with a payload",
            codes("dtype_not_supported"),
            lambda lure: seeds.zip_of([("image.npy", _pickled(lure))]),
            "datasets",
        ),
        Case("npz: link", codes("not_a_dataset", "archive_unsafe"), _link("image.npy"), "datasets"),
    ]


def _pickled(lure: Lure) -> bytes:
    array = np.empty(2, object)
    array[:] = [Payload(lure), None]
    return seeds.npy(array)


def _link(name: str):
    def make(lure: Lure) -> bytes:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o120777 << 16
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(entry, str(lure.canary))
        return content.getvalue()

    return make


def _doubled(image: bytes) -> bytes:
    import warnings

    with warnings.catch_warnings(action="ignore"):
        return seeds.zip_of([("image.npy", image), ("image.npy", image)])


def _patched(image: bytes, signature: bytes, offset: int, number: int) -> bytes:
    data = bytearray(seeds.zip_of([("image.npy", image)]))
    at = data.index(signature) + offset
    data[at : at + 4] = number.to_bytes(4, "little")
    return bytes(data)


def _encrypted(image: bytes) -> bytes:
    data = bytearray(seeds.zip_of([("image.npy", image)]))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def overlapping(members: int = 200) -> bytes:
    """Many entries of the table lead to the same deflated member, as in zip bombs of the better kind."""
    packed = seeds.zip_of([("00000.npy", seeds.npy(np.zeros((1, 2**18), np.float32)))], zipfile.ZIP_DEFLATED)
    directory = packed.index(b"PK\x01\x02")
    end = packed.index(b"PK\x05\x06")
    entry = packed[directory:end]
    entries = [entry.replace(b"00000.npy", b"%05d.npy" % index) for index in range(members)]
    table = b"".join(entries)
    count = struct.pack("<HH", members, members)
    tail = packed[end : end + 8] + count + struct.pack("<I", len(table)) + packed[end + 16 :]
    return packed[:directory] + table + tail


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """A grey picture of this size whose data is a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + more + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _folder(*pictures: bytes, name: str = "a/{}.png") -> bytes:
    return seeds.zip_of([(name.format(index), data) for index, data in enumerate(pictures)])


def _thin(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, "PNG")
    return content.getvalue()


def _pictures() -> list[Case]:
    good = seeds.picture("PNG")
    text = _chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(80 * _MIB), 1))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) (r) file\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    named = {
        "3.6 gigapixels": (codes("archive_unsafe", "image_unreadable"), _folder(png(60_000, 60_000))),
        "2^31 by 2^31 pixels": (codes("archive_unsafe", "image_unreadable"), _folder(png(2**31 - 1, 2**31 - 1))),
        "80 MiB of text in 400 KB": (codes("image_unreadable", "archive_unsafe"), _folder(png(8, 8, text))),
        "PostScript": (codes("image_unreadable"), _folder(postscript)),
        "SVG": (codes("image_unreadable"), _folder(svg)),
        "no pixels": (codes("image_unreadable"), _folder(png(0, 0))),
        "path upwards": (_UNSAFE, _folder(good, name="a/../../{}.png")),
        "absolute path": (_UNSAFE, _folder(good, name="/a/{}.png")),
        "path with backslashes": (_UNSAFE, _folder(good, name="a\\..\\{}.png")),
        "path of 60,000 letters": (
            codes("not_a_dataset", "archive_unsafe"),
            _folder(good, name="a/" * 30_000 + "{}.png"),
        ),
        "pickle as a picture": (codes("image_unreadable"), _folder(b"\x80\x04cos\nsystem\n(S'true'\ntR.")),
        "deflated zeros": (
            codes("archive_unsafe"),
            seeds.zip_of([("a/0.png", bytes(128 * _MIB))], zipfile.ZIP_DEFLATED),
        ),
    }
    return [
        *(
            Case(f"pictures: {name}", wanted, constant(data), "datasets", IMAGES, filename="pictures.zip")
            for name, (wanted, data) in named.items()
        ),
        Case(
            "pictures: one row, enlarged to 24 billion pixels",
            codes("archive_unsafe", "image_unreadable"),
            lambda _: _folder(_thin(1_000_000, 1)),
            "datasets",
            {"images": {"width": 224, "height": 224, "resize_shorter_to": 256}},
        ),
        Case("pictures: link", codes("image_unreadable", "archive_unsafe"), _link("a/0.png"), "datasets", IMAGES),
    ]
