"""Files that are cut, changed or lie: refused with a code and a place, and never decoded to something else."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.coding import container, rans, tables
from compression.coding.bits import ByteReader, varint
from compression.coding.decode import decode
from compression.coding.encode import encode
from compression.errors import ModelRejected
from tests.compression.coding import files

CODES = {"not_levity", "levity_version", "levity_truncated", "levity_corrupted", "model_too_large"}


def _model() -> bytes:
    rng = np.random.default_rng(0)
    return files.arrays_file(
        sparse=files.pruned(rng, (40, 50), 0.05, 7),
        near=files.receptive(rng, 20, 12),
        quantized=np.clip(np.rint(rng.standard_normal((30, 40)) * 25), -127, 127).astype(np.int8),
        plain=rng.standard_normal((12, 20)).astype(np.float32),
    )


MODEL = _model()
CODED = {coder: encode(MODEL, coder=coder).data for coder in ("rans", "huffman")}


def refusal(data: bytes, **options) -> ModelRejected:
    with pytest.raises(ModelRejected) as caught:
        decode(data, **options)
    assert caught.value.code in CODES
    return caught.value


def test_every_cut_is_noticed():
    data = CODED["rans"]
    for end in [*range(90), *range(90, len(data), 37), len(data) - 1]:
        error = refusal(data[:end])
        assert error.code == ("not_levity" if end < 6 else "levity_truncated"), end
        assert end < 6 or "at byte" in error.message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_change_is_noticed(data):
    changed = bytearray(CODED[data.draw(st.sampled_from(sorted(CODED)))])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position] ^= data.draw(st.integers(1, 255))
    if bytes(changed) not in CODED.values():
        refusal(bytes(changed))


@pytest.mark.parametrize("coder", sorted(CODED))
def test_the_place_is_named(coder):
    data = CODED[coder]
    head = container.read_head(memoryview(data), len(MODEL))
    places = {"graph": head.graph, "tables": head.tables} | {f"stream {k}": one for k, one in enumerate(head.streams)}
    for place, (start, end) in places.items():
        changed = bytearray(data)
        changed[(start + end) // 2] ^= 16
        error = refusal(bytes(changed))
        assert error.code == "levity_corrupted"
        assert f"damaged in its {place}, at byte {start}: its checksum" in error.message
    assert "2 bytes too many" in refusal(data + b"\0\0").message


def _with_checksums(data: bytearray) -> bytes:
    """What an attacker does who knows the format."""
    head_end = _head_end(data)
    data[head_end : head_end + 4] = zlib.crc32(data[:head_end]).to_bytes(4, "little")
    head = container.read_head(memoryview(data), 2**31)
    for start, end in (head.graph, head.tables, *head.streams):
        data[end : end + 4] = zlib.crc32(data[start:end]).to_bytes(4, "little")
    return bytes(data)


def _head_end(data: bytes | bytearray) -> int:
    reader = ByteReader(memoryview(data), "header", 0)
    reader.take(40)
    *_, count = (reader.varint() for _ in range(5))
    for _ in range(count):
        reader.varint()
    return len(data) - reader.rest


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changes_under_right_checksums_give_the_same_model_or_none(data):
    whole = CODED[data.draw(st.sampled_from(sorted(CODED)))]
    changed = bytearray(whole)
    first = _head_end(whole) + 4
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(first, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(_with_checksums(changed))
    except ModelRejected:
        return
    assert found == MODEL


def test_another_version():
    data = bytearray(CODED["rans"])
    data[6] = 2
    error = refusal(bytes(data))
    assert error.code == "levity_version"
    assert "version 2" in error.message


def test_sizes_are_believed_only_up_to_a_limit():
    assert refusal(CODED["rans"], max_bytes=len(MODEL) - 1).code == "model_too_large"
    for sizes in (
        (2**40, 200, 100, 0, 0),
        (100, 2**40, 100, 0, 0),
        (2**20, 10, 2**40, 0, 0),
        (2**20, 10, 10, 0, 2**40),
    ):
        head = b"LEVITY\x01\x00" + bytes(32) + b"".join(map(varint, sizes))
        refusal(head + zlib.crc32(head).to_bytes(4, "little") + bytes(100))


def test_a_graph_that_unpacks_to_more_than_it_says():
    bomb = zlib.compressobj(9, wbits=-15)
    packed = bomb.compress(bytes(50_000_000)) + bomb.flush()
    head = b"LEVITY\x01\x00" + bytes(32) + b"".join(map(varint, (1000, 1000, len(packed), 0, 0)))
    parts = (head, packed, b"")
    data = b"".join(part + zlib.crc32(part).to_bytes(4, "little") for part in parts)
    assert "does not unpack to what the header says" in refusal(data).message


def test_states_and_words_must_come_out_even():
    rows = tables.FrequencyTables([tables.from_codes(tables.to_codes(np.array([3, 1] + [0] * 254)).tolist())])
    numbers = np.ones(100, np.uint16)
    symbols = (np.arange(100) % 4 == 0).astype(np.uint8)
    (data,) = rans.encode([rans.Uncoded(symbols, numbers)], rows)
    for changed in (data[:1] + b"\xff" + data[2:], data[:1] + bytes(4) + data[5:]):
        with pytest.raises(ModelRejected, match="stream 7"):
            rans.decode([rans.Coded(numbers, ByteReader(memoryview(changed), "stream 7", 0))], rows)
