"""Files that torch, or a pickle inside them, would be made to do harm by."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from safetensors.numpy import save

from tests.hostile.case import Case, Lure, Payload, codes, constant

LAYERS = {"architecture": {"layers": [{"type": "linear", "in_features": 4, "out_features": 3}]}}
_REFUSED = codes("pickle_refused")


def cases() -> list[Case]:
    """Pickles, archives and safetensors, with and without an architecture."""
    named = {
        "bare pickle": (codes("legacy_pickle"), lambda lure: pickle.dumps(Payload(lure))),
        "bare pickle of protocol 0": (codes("not_a_state_dict"), lambda lure: pickle.dumps(Payload(lure), 0)),
        "file of torch before 1.6": (codes("legacy_pickle"), _legacy),
        "tar of torch before 0.1.10 (CVE-2025-32434)": (codes("legacy_pickle"), _tar),
        "pickled object in torch's archive": (_REFUSED, lambda lure: _saved(Payload(lure))),
        "payload beside tensors": (_REFUSED, lambda lure: _saved({"0.weight": torch.ones(3, 4), "x": Payload(lure)})),
        "pickled module": (_REFUSED, constant(_saved(torch.nn.Linear(4, 3)))),
        "TorchScript": (codes("torchscript_not_accepted"), _torchscript),
        "torch.export archive with payloads": (codes("torchscript_not_accepted", "not_a_state_dict"), pt2),
        "deflated tensors": (codes("archive_unsafe"), constant(_deflated())),
        "second data.pkl": (codes("archive_unsafe"), _second_pickle),
        "data.pkl renamed between the tables of the archive": (
            codes("not_a_state_dict", "pickle_refused", "archive_unsafe", "truncated_model"),
            _renamed,
        ),
        "storage smaller than said (CVE-2026-24747)": (codes("not_a_state_dict"), constant(_short_storage())),
        "items set on a tensor (CVE-2026-24747)": (
            codes("pickle_refused", "not_a_state_dict"),
            constant(_pickle(b"SETITEMS")),
        ),
        "tuple in itself": (codes("not_a_state_dict", "pickle_refused"), constant(_pickle(b"nested"))),
        "length of 2 GiB": (codes("not_a_state_dict", "pickle_refused"), constant(_pickle(b"length"))),
        "one element, repeated": (codes("not_a_state_dict"), constant(_strided())),
        "nan": (codes("non_finite_weights"), constant(_saved({"0.weight": torch.full((3, 4), torch.nan)}))),
        "key with NUL and dots": (codes("not_a_state_dict"), constant(_saved({"../\0": torch.ones(2)}))),
        "key of a million letters": (codes("not_a_state_dict"), constant(_saved({"a" * 10**6: torch.ones(2)}))),
        "list": (codes("not_a_state_dict"), constant(_saved([torch.ones(2)]))),
    }
    return [
        *(
            Case(f"pt: {name}", wanted, make, body=LAYERS, filename="model.pt")
            for name, (wanted, make) in named.items()
        ),
        Case(
            "pt: pickle without architecture",
            codes("not_onnx"),
            lambda lure: pickle.dumps(Payload(lure)),
        ),
        Case("pt: object without architecture", codes("architecture_missing"), lambda lure: _saved(Payload(lure))),
        *_safetensors(),
    ]


def _saved(value: object, **options: object) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def _legacy(lure: Lure) -> bytes:
    return _saved({"0.weight": Payload(lure)}, _use_new_zipfile_serialization=False)


def _tar(lure: Lure) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Payload(lure))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(lure.canary)
        archive.addfile(link)
    return content.getvalue()


class _Doubling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@cache
def _torchscript(_: Lure) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(_Doubling(), torch.ones(2)), content)
    return content.getvalue()


@cache
def pt2(lure: Lure) -> bytes:
    """What `torch.export.save` wrote, with a payload in the place of each pickle inside."""
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(torch.export.export(_Doubling(), (torch.ones(2),)), content)
    payload = _saved(Payload(lure))

    def change(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, payload if data[:2] == b"PK" or name.endswith((".pt", ".pkl")) else data)]

    return _rewritten(content.getvalue(), change)


def _rewritten(
    data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]], compression: int = zipfile.ZIP_STORED
) -> bytes:
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(content, "w", compression) as new,
        warnings.catch_warnings(action="ignore"),  # of names that occur twice
    ):
        for entry in old.infolist():
            for name, inner in change(entry.filename, old.read(entry)):
                new.writestr(name, inner)
    return content.getvalue()


def _deflated() -> bytes:
    return _rewritten(_saved({"0.weight": torch.zeros(2**22)}), lambda name, data: [(name, data)], zipfile.ZIP_DEFLATED)


def _second_pickle(lure: Lure) -> bytes:
    def change(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, data), (name, pickle.dumps(Payload(lure)))] if name.endswith("data.pkl") else [(name, data)]

    return _rewritten(_saved({"0.weight": torch.ones(3, 4)}), change)


def _renamed(lure: Lure) -> bytes:
    """The central directory and the local headers disagree about which entry is the pickle."""

    def change(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, data), (name.replace("data.pkl", "fake.pkl"), pickle.dumps(Payload(lure)))]

    data = bytearray(_rewritten(_saved({"0.weight": torch.ones(3, 4)}), change))
    directory = data.index(b"PK\x01\x02")
    for one, other in ((b"/fake.pkl", b"/xxxx.pkl"), (b"/data.pkl", b"/fake.pkl"), (b"/xxxx.pkl", b"/data.pkl")):
        at = data.index(one, directory)
        data[at : at + len(one)] = other
    return bytes(data)


def _short_storage() -> bytes:
    def change(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, data[:8] if "/data/" in name else data)]

    return _rewritten(_saved({"0.weight": torch.ones(3, 400), "0.bias": torch.ones(3)}), change)


def _pickle(what: bytes) -> bytes:
    """A harmless archive with other instructions before the end of its pickle."""
    tensor = pickle.NONE
    stop = pickle.STOP
    instructions = {
        b"SETITEMS": pickle.MARK
        + pickle.BININT1
        + b"\0"
        + pickle.BININT
        + b"\xff\xff\xff\x7f"
        + pickle.SETITEMS
        + stop,
        b"nested": pickle.TUPLE1 * 200_000 + pickle.APPEND + stop,
        b"length": pickle.BINUNICODE + b"\xff\xff\xff\x7f" + tensor + stop,
    }[what]

    def change(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, data[:-1] + instructions if name.endswith("data.pkl") else data)]

    return _rewritten(_saved({"0.weight": torch.ones(3, 4)}), change)


def _strided() -> bytes:
    return _saved({"0.weight": torch.ones(1).expand(2**20, 2**20)})


def _safetensors() -> list[Case]:
    weights = save({"0.weight": np.ones((3, 4), np.float32), "0.bias": np.zeros(3, np.float32)})
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    body = weights[8 + length :]

    def written(text: bytes, announced: int | None = None) -> bytes:
        return (len(text) if announced is None else announced).to_bytes(8, "little") + text + body

    def changed(**weight: object) -> bytes:
        return written(json.dumps({**header, "0.weight": {**header["0.weight"], **weight}}).encode())

    text = json.dumps(header).encode()
    files = {
        "header of 2^63 bytes": written(text, 2**63),
        "header of 100 MB in 200 bytes": written(text, 100_000_000),
        "header beyond the end": written(text, len(weights)),
        "offsets beyond the end": changed(data_offsets=[0, 10**12]),
        "offsets the other way round": changed(data_offsets=[48, 0]),
        "negative offsets": changed(data_offsets=[-48, 0]),
        "tensors that overlap": changed(data_offsets=[4, 52]),
        "a hole between tensors": changed(data_offsets=[0, 40]),
        "64 GiB in 48 bytes": changed(shape=[2**17, 2**17]),
        "product of lengths beyond 2^64": changed(shape=[2**63, 2**63, 4]),
        "negative length": changed(shape=[-3, -4]),
        "unknown type": changed(dtype="F1"),
        "lists 100,000 deep": written(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "name twice": written(text[:-1] + b"," + text[1:]),
        "no UTF-8": written(text.replace(b"0.bias", b"0.bi\xff\xfe")),
        "no JSON": written(b"{" + b"\xff" * 100 + b"}"),
        "210,000 tensors": written(
            b"{"
            + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(210_000))
            + b"}"
        ),
    }
    refused = codes("not_a_state_dict", "truncated_model", "too_many_tensors", "not_onnx")
    unread = codes("not_a_dataset", "empty_dataset", "dtype_not_supported", "lengths_differ")
    return [
        *(Case(f"safetensors: {name}", refused, constant(data), body=LAYERS) for name, data in files.items()),
        *(
            Case(f"data: {name}", codes() if name == "name twice" else unread, constant(data), "datasets")
            for name, data in files.items()
        ),
    ]
