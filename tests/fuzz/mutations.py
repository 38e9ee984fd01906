"""Edits of bytes, protobuf messages, JSON documents and zip archives, all drawn from one `random.Random`."""

from __future__ import annotations

import json
import random
import re
import struct
from typing import Any

from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 3, 7, 8, 64, 127, 128, 255, 256, 1000, 65535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40, 2**62)
INTEGERS += (2**63 - 1, -(2**63), 10**9)
STRINGS = (
    "",
    "x",
    "y",
    "\0",
    "..",
    "../x",
    "/etc/passwd",
    "a" * 300,
    "ai.onnx",
    "ai.onnx.ml",
    "com.evil",
    "w",
    "é\ud7ff",
)
_DOUBLES = (0.0, -1.0, 1e308, float("nan"), float("inf"), -float("inf"), 1e-320)
_LARGEST_MESSAGE = 300_000
# Little-endian fields of zip records by signature: offset and size. APPNOTE.TXT, sections 4.3.7, 4.3.12, 4.3.16.
_ZIP_RECORDS = {
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x01\x02": ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (38, 4), (42, 4)),
    b"PK\x05\x06": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}


def times(rng: random.Random, most: int = 6) -> range:
    """How often to do something: mostly once or twice."""
    count = 1
    while count < most and rng.random() < 0.4:
        count += 1
    return range(count)


def edit_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, set, insert, delete, repeat or cut."""
    edited = bytearray(data)
    for _ in times(rng):
        at = rng.randrange(len(edited)) if edited else 0
        length = rng.choice((1, 2, 4, 8, 16, 100))
        match rng.randrange(8):
            case 0 | 1 if edited:
                edited[at] ^= 1 << rng.randrange(8)
            case 2 if edited:
                edited[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 3:
                edited[at:at] = rng.randbytes(length)
            case 4:
                del edited[at : at + length]
            case 5:
                edited[at:at] = edited[at : at + length] * rng.choice((1, 2, 10))
            case 6:
                number = rng.choice(INTEGERS) % 2**64
                edited[at : at + 8] = number.to_bytes(8, rng.choice(("little", "big")))
            case _ if rng.random() < 0.3:
                del edited[at:]
    return bytes(edited)


def edit_message(rng: random.Random, root: Message, donor: Message) -> None:
    """Change one field somewhere in `root`; parts may come from `donor`, a message of the same type."""
    target = _inside(rng, root)
    if rng.random() < 0.15:
        for _ in range(20):
            part = _inside(rng, donor)
            if part.DESCRIPTOR is target.DESCRIPTOR and part is not donor:
                target.CopyFrom(part)
                return
    field = rng.choice(target.DESCRIPTOR.fields)
    values = getattr(target, field.name)
    if field.message_type is not None:
        _edit_messages(rng, root, target, field.name, values)
    elif hasattr(values, "append"):
        match rng.randrange(4):
            case 0:
                values.append(_scalar(rng, field))
            case 1 if len(values):
                del values[rng.randrange(len(values))]
            case 2 if len(values):
                values[rng.randrange(len(values))] = _scalar(rng, field)
            case _:
                values.extend([_scalar(rng, field)] * rng.choice((1, 2, 50)))
    elif rng.random() < 0.2:
        target.ClearField(field.name)
    else:
        _set(target, field, _scalar(rng, field))


def _edit_messages(rng: random.Random, root: Message, target: Message, name: str, values: Any) -> None:
    if not hasattr(values, "add"):
        if rng.random() < 0.3:
            target.ClearField(name)
        elif values.DESCRIPTOR is getattr(root, "graph", root).DESCRIPTOR and root.ByteSize() < _LARGEST_MESSAGE:
            inner = type(values)()
            inner.CopyFrom(getattr(root, "graph", root))
            values.CopyFrom(inner)  # a graph in a graph
        else:
            values.SetInParent()
        return
    match rng.randrange(4):
        case 0:
            values.add()
        case 1 if len(values):
            del values[rng.randrange(len(values))]
        case 2 if len(values) > 1:
            one, other = rng.sample(range(len(values)), 2)
            values[one].CopyFrom(values[other])
        case _ if len(values) and root.ByteSize() < _LARGEST_MESSAGE:
            copies = [type(values[0]).FromString(rng.choice(values).SerializeToString()) for _ in times(rng)]
            values.extend(copies)


def _inside(rng: random.Random, message: Message) -> Message:
    """A part of a message, found by going down at random."""
    while True:
        parts: list[Message] = []
        for _, value in message.ListFields():
            if isinstance(value, Message):
                parts.append(value)
            elif hasattr(value, "add"):
                parts.extend(value)
        if not parts or rng.random() < 0.2:
            return message
        message = rng.choice(parts)


def _scalar(rng: random.Random, field: Any) -> Any:  # noqa: PLR0911 - one for each type of field
    kind = field.cpp_type
    if kind in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return rng.choice(_DOUBLES)
    if field.type == field.TYPE_BYTES:
        return rng.choice((b"", b"\0", b"axis", rng.randbytes(rng.choice((1, 4, 64, 1000)))))
    if kind == field.CPPTYPE_STRING:
        return rng.choice(STRINGS)
    if kind == field.CPPTYPE_ENUM:
        return rng.choice([*(value.number for value in field.enum_type.values), 0])
    if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32):
        return rng.choice(INTEGERS) % 2**31
    if kind == field.CPPTYPE_UINT64:
        return rng.choice(INTEGERS) % 2**64
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return rng.choice((*INTEGERS, rng.randrange(-64, 64)))


def _set(target: Message, field: Any, value: Any) -> None:
    setattr(target, field.name, value)


def edit_json(rng: random.Random, value: Any) -> Any:  # noqa: PLR0911 - one for each edit
    """One change somewhere in a document."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice([*value])
        match rng.randrange(6):
            case 0:
                return {other: one for other, one in value.items() if other != key}
            case 1:
                return {**value, rng.choice(STRINGS): value[key]}
            case _:
                return {**value, key: edit_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], edit_json(rng, value[at]), *value[at + 1 :]]
    others = (None, True, {}, [], 1.5, 1e400, "F32", "BF16", "F8_E4M3", "I64", [[]], {"a": 1})
    return rng.choice((rng.choice(INTEGERS), rng.choice(INTEGERS), rng.choice(STRINGS), rng.choice(others)))


def json_text(rng: random.Random, value: Any) -> bytes:
    """A document as text, at times with what JSON has not."""
    text = json.dumps(value)
    match rng.randrange(12):
        case 0:
            return edit_bytes(rng, text.encode())
        case 1:
            return text.encode() + b" " * rng.randrange(20)
        case 2:
            return (b"[" * rng.choice((50, 5000, 200_000))) + text.encode()
        case 3:
            return text.replace("[", '{"a":', 1).encode()
    return text.encode(errors="replace")


def edit_zip(rng: random.Random, data: bytes) -> bytes:
    """Change numbers of an archive's records, which then say what is not so."""
    edited = bytearray(data)
    places = [match.start() for match in re.finditer(rb"PK(\x03\x04|\x01\x02|\x05\x06)", data)]
    for _ in times(rng, 4):
        at = rng.choice(places)
        offset, size = rng.choice(_ZIP_RECORDS[bytes(data[at : at + 4])])
        if at + offset + size > len(edited):
            continue
        old = int.from_bytes(edited[at + offset : at + offset + size], "little")
        new = rng.choice((rng.choice(INTEGERS), old + rng.choice((-30, -1, 1, 30)), rng.choice((8, 12, 14, 93, 99))))
        edited[at + offset : at + offset + size] = struct.pack("<Q", new % 2**64)[:size]
    return bytes(edited)
