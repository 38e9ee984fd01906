"""One damaged file of each format, made from its number alone: the same number gives the same file for ever."""

from __future__ import annotations

import json
import pickletools
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import onnx
from google.protobuf.message import DecodeError
from safetensors.numpy import save

from compression.coding import container
from compression.coding.bits import varint
from compression.coding.dictionary import DICTIONARY
from tests.fuzz import seeds
from tests.fuzz.mutations import INTEGERS, STRINGS, edit_bytes, edit_json, edit_message, edit_zip, json_text, times

ARCHITECTURE = {
    "layers": [{"type": "linear", "in_features": 4, "out_features": 3}, {"type": "batch_norm", "num_features": 3}]
}
_IMAGES = {"width": 4, "height": 4}
_NPY_DESCRIPTIONS = ("|O", "<f8", ">i4", "<U10", "|V8", "<f2", "|b1", "<M8[s]", "<c16", "|S3", "<i99", "(2,3)<f4", "")


class Case(NamedTuple):
    """What an upload would bring.

    Attributes:
        files: Bytes by name; the first is the upload, others lie beside it.
        request: Fields of the child's request.
    """

    files: dict[str, bytes]
    request: dict[str, Any]


def make(kind: str, seed: int, index: int, onnx_seeds: Sequence[bytes]) -> Case:
    """File number `index` of a kind."""
    rng = random.Random(f"{seed}/{kind}/{index}")
    return KINDS[kind](rng, onnx_seeds)


def _model(data: bytes, **others: bytes) -> Case:
    files = {"model.onnx": data} | {name.replace("_", "."): content for name, content in others.items()}
    return Case(files, {"kind": "inspect_model", "model": "in/model/model.onnx"})


def _dataset(data: bytes, images: dict[str, Any] | None = None) -> Case:
    source = {"path": "in/model/data", "sha256": "0" * 64, "images": images}
    return Case({"data": data}, {"kind": "inspect_dataset", "data": {"data": source}})


def _weights(data: bytes) -> Case:
    source = {"architecture": ARCHITECTURE, "input": None}
    return Case({"weights": data}, {"kind": "inspect_model", "model": "in/model/weights", "source": source})


def _damaged_model(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    if rng.random() < 0.8:
        try:
            model = onnx.ModelProto.FromString(data)
        except DecodeError:
            return edit_bytes(rng, data)  # it is damaged already
        other = onnx.ModelProto.FromString(donor)
        for _ in times(rng, 5):
            edit_message(rng, model, other)
        data = model.SerializeToString()
    return edit_bytes(rng, data) if rng.random() < 0.3 else data


def _onnx(rng: random.Random, onnx_seeds: Sequence[bytes]) -> Case:
    data = _damaged_model(rng, rng.choice(onnx_seeds), rng.choice(onnx_seeds))
    return _model(data, model_data=bytes(256))


@cache
def _levity_seeds() -> list[bytes]:
    return seeds.levity_files()


def _levity(rng: random.Random, onnx_seeds: Sequence[bytes]) -> Case:
    """Parts are changed, and the sums that guard them made right again: most of the decoder lies behind these."""
    data = rng.choice(_levity_seeds())
    if rng.random() < 0.1:
        return _model(edit_bytes(rng, data))
    head = container.read_head(memoryview(data), len(data) * 100)
    parts = [data[start:end] for start, end in (head.graph, head.tables, *head.streams)]
    size, graph_size = head.size, head.graph_size
    for _ in times(rng, 3):
        which = rng.choice((0, 1, *range(len(parts))))
        if which == 0:
            graph = zlib.decompressobj(-zlib.MAX_WBITS, DICTIONARY).decompress(parts[0])
            changed = _damaged_model(rng, graph, graph) if rng.random() < 0.7 else edit_bytes(rng, graph)
            size += len(changed) - len(graph)
            graph_size = len(changed)
            packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
            parts[0] = packer.compress(changed) + packer.flush()
        else:
            parts[which] = edit_bytes(rng, parts[which])
    numbers = [size, graph_size, len(parts[0]), len(parts[1]), len(parts) - 2, *map(len, parts[2:])]
    if rng.random() < 0.15:
        numbers[rng.randrange(len(numbers))] = rng.choice(INTEGERS) % 2**63
    coder = data[len(container.MAGIC) + 1]
    front = data[: len(container.MAGIC) + 1] + bytes([coder]) + head.sha256
    parts.insert(0, front + b"".join(varint(max(number, 0)) for number in numbers))
    return _model(b"".join(part + zlib.crc32(part).to_bytes(4, "little") for part in parts))


def _damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.2:
        return edit_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header: Any = json.loads(data[8 : 8 + length])
    for _ in times(rng, 3):
        header = edit_json(rng, header)
    text = json_text(rng, header)
    body = data[8 + length :]
    if rng.random() < 0.3:
        body = edit_bytes(rng, body)
    announced = len(text) if rng.random() < 0.9 else rng.choice(INTEGERS) % 2**64
    return announced.to_bytes(8, "little") + text + body


def _safetensors(rng: random.Random, _: Sequence[bytes]) -> Case:
    return _dataset(_damaged_safetensors(rng, save(seeds.arrays())))


def _damaged_npy(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[8:10], "little")
    if rng.random() < 0.3 or b"shape" not in data[10 : 10 + length]:
        return edit_bytes(rng, data)
    header = data[10 : 10 + length].decode("latin-1")
    match rng.randrange(6):
        case 0 | 1:
            numbers = [*re.finditer(r"\d+", header[header.index("shape") :])]
            if numbers:
                at, end = (header.index("shape") + place for place in rng.choice(numbers).span())
                header = f"{header[:at]}{rng.choice(INTEGERS)}{header[end:]}"
        case 2:
            header = re.sub(r"'descr': '[^']*'", f"'descr': {rng.choice(_NPY_DESCRIPTIONS)!r}", header)
        case 3:
            header = re.sub(r"'descr': '[^']*'", "'descr': [('a', '<f4'), ('b', '|O')]", header)
        case 4:
            header = header.replace("False", rng.choice(("True", "1", "None", "[]")))
        case _:
            header = rng.choice(("(" * rng.choice((100, 5000)), "{'shape': " * 50, header + header, "__import__('os')"))
    text = header.encode("latin-1", errors="replace")
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    width = 2 if version[0] == 1 else 4
    announced = len(text) if rng.random() < 0.9 else rng.choice(INTEGERS)
    return data[:6] + version + (announced % 256**width).to_bytes(width, "little") + text + data[10 + length :]


def _npz(rng: random.Random, _: Sequence[bytes]) -> Case:
    members = [(f"{name}.npy", seeds.npy(array)) for name, array in seeds.arrays().items()]
    for _ in times(rng, 3):
        at = rng.randrange(len(members))
        name, data = members[at]
        members[at] = (name, _damaged_npy(rng, data))
        if rng.random() < 0.2:
            members[at] = (rng.choice((*STRINGS, "labels.npy", "a.npy/", "../a.npy")), data)
    return _dataset(_damaged_zip(rng, members, 0.3))


def _damaged_zip(rng: random.Random, members: list[tuple[str, bytes]], share: float) -> bytes:
    members = [(name.replace("\0", "0").encode(errors="replace").decode()[:60000], data) for name, data in members]
    data = seeds.zip_of(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    if rng.random() < share:
        data = edit_zip(rng, data)
    return edit_bytes(rng, data) if rng.random() < share / 3 else data


@cache
def _pictures() -> dict[str, bytes]:
    return {kind: seeds.picture(kind) for kind in seeds.PICTURES}


def _damaged_picture(rng: random.Random, kind: str) -> bytes:
    data = _pictures()[kind]
    if kind == "PNG" and rng.random() < 0.7:
        # A chunk is checked by its sum before it is read.
        chunks = []
        at = 8
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "big")
            chunks.append(data[at + 4 : at + 8 + length])
            at += 12 + length
        which = rng.randrange(len(chunks))
        chunks[which] = chunks[which][:4] + edit_bytes(rng, chunks[which][4:])
        sized = ((len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks)
        return data[:8] + b"".join(sized)
    head = rng.choice((16, 64, len(data)))
    return edit_bytes(rng, data[:head]) + data[head:]


def _zip(rng: random.Random, _: Sequence[bytes]) -> Case:
    kinds = [rng.choice(seeds.PICTURES) for _ in range(3)]
    members = [(f"{'ab'[index % 2]}/{index}.{kind.lower()}", _pictures()[kind]) for index, kind in enumerate(kinds)]
    at = rng.randrange(3)
    members[at] = (members[at][0], _damaged_picture(rng, kinds[at]))
    if rng.random() < 0.2:
        members[at] = (rng.choice((*STRINGS, "a/../../b.png", "/a/b.png", "a\\b.png", "c/d/e/f.png")), members[at][1])
    return _dataset(_damaged_zip(rng, members, 0.25), _IMAGES)


def _weights_safetensors(rng: random.Random, _: Sequence[bytes]) -> Case:
    return _weights(_damaged_safetensors(rng, save(seeds.weights())))


@cache
def _state_dict() -> list[tuple[str, bytes]]:
    import io

    with zipfile.ZipFile(io.BytesIO(seeds.state_dict())) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


_OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def _pt(rng: random.Random, _: Sequence[bytes]) -> Case:
    members = [*_state_dict()]
    for _ in times(rng, 2):
        at = rng.choice((0, 0, rng.randrange(len(members))))
        name, data = members[at]
        if name.endswith("data.pkl") and rng.random() < 0.7:
            place = rng.randrange(2, len(data))
            inserted = b"".join(rng.choice(_OPCODES) + rng.randbytes(rng.randrange(3)) for _ in times(rng))
            data = data[:place] + inserted + data[place + rng.randrange(3) :]
        else:
            data = edit_bytes(rng, data)
        members[at] = (name, data)
    data = seeds.zip_of(members)
    return _weights(edit_zip(rng, data) if rng.random() < 0.25 else data)


KINDS: dict[str, Callable[[random.Random, Sequence[bytes]], Case]] = {
    "onnx": _onnx,
    "levity": _levity,
    "safetensors": _safetensors,
    "npz": _npz,
    "zip": _zip,
    "weights": _weights_safetensors,
    "pt": _pt,
}
"""Formats by name: `zip` holds pictures, `weights` is safetensors with an architecture, `pt` from `torch.save`."""
