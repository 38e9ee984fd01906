"""What an uploaded file is by its first bytes, and whether a torch archive is harmless before torch opens it."""

from __future__ import annotations

import json
import zipfile
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from compression.errors import ModelRejected
from compression.graph.limits import Limits
from compression.graph.wire import CutShort, NotWireFormat, outline

LEVITY_MAGIC = b"LEVITY"
"""First bytes of a `.levity` file (`compression.coding.container`), which no ONNX file begins with."""
_MAX_HEADER_BYTES = 100 << 20
_MAX_PICKLE_BYTES = 64 << 20
_MAX_ENTRIES_BESIDE_TENSORS = 64
_PICKLE_PROTOCOLS = range(1, 6)
_LEGACY_TAR = b"ustar"

HOW_TO_SAVE = "Save the weights alone: safetensors.torch.save_file(model.state_dict(), path), or torch.save of it."


class Format(StrEnum):
    """Files that hold weights and no graph."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "torch_zip"
    PICKLE = "pickle"


def is_levity(path: Path) -> bool:
    """Whether a file begins like a `.levity` file, which is an ONNX file coded."""
    with path.open("rb") as file:
        return file.read(len(LEVITY_MAGIC)) == LEVITY_MAGIC


def weights_format(path: Path) -> Format | None:
    """The format that the first bytes tell; None for anything else, ONNX included.

    An ONNX file begins with the tag of its IR version or of another field of `ModelProto`. Neither is a zip's magic
    number, the start of a pickle, nor can it be followed by a JSON object at byte 8 as safetensors are.
    """
    with path.open("rb") as file:
        start = file.read(16)
        tar = start and file.seek(257) and file.read(5)
    if start[:4] == b"PK\x03\x04":
        return Format.TORCH_ZIP
    if len(start) > 9 and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= _MAX_HEADER_BYTES:
        return Format.SAFETENSORS
    if (len(start) > 2 and start[0] == 0x80 and start[1] in _PICKLE_PROTOCOLS) or tar == _LEGACY_TAR:
        return Format.PICKLE
    return None


def holds_weights(path: Path) -> bool:
    """Whether a file looks like one that `compression.graph.architectures.convert` takes."""
    kind = weights_format(path)
    if kind is not Format.TORCH_ZIP:
        return kind is Format.SAFETENSORS
    with path.open("rb") as file:
        return b"/data.pkl" in file.read(512)  # the first entry of torch's archives


def check_weights(path: Path, limits: Limits) -> Format:
    """Refuse all that is not a complete and harmless file of weights, without torch and before it sees the file.

    Raises:
        ModelRejected: `not_a_state_dict`, `legacy_pickle`, `architecture_with_onnx`, `truncated_model`,
            `archive_unsafe`, `model_too_large`, `too_many_tensors` or `torchscript_not_accepted`.
    """
    kind = weights_format(path)
    match kind:
        case Format.SAFETENSORS:
            _check_safetensors(path, limits)
        case Format.TORCH_ZIP:
            _check_torch_archive(path, limits)
        case Format.PICKLE:
            raise ModelRejected(
                "legacy_pickle",
                f"The file is a bare pickle, as torch wrote before 1.6, which is never loaded. {HOW_TO_SAVE}",
            )
        case None:
            if _is_onnx(path, limits):
                raise ModelRejected(
                    "architecture_with_onnx",
                    "The file is an ONNX model, which says itself what it is: leave 'architecture' out.",
                )
            raise ModelRejected(
                "not_a_state_dict", f"The bytes are neither safetensors nor a file of torch.save. {HOW_TO_SAVE}"
            )
    return kind


def _is_onnx(path: Path, limits: Limits) -> bool:
    try:
        return path.stat().st_size <= limits.max_bytes and outline(path.read_bytes(), stop_at=1).has_graph
    except (NotWireFormat, CutShort):
        return False


def _check_torch_archive(path: Path, limits: Limits) -> None:
    """Refuse a `.pt` file that is not what `torch.save` writes, before torch reads any of it.

    `torch.save` compresses nothing, so an archive that unpacks to more than it weighs was made by someone else: with
    deflate, 1 MiB became 1 GiB inside `torch.load(weights_only=True)`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise ModelRejected(
            "truncated_model", f"The file begins like a torch archive and ends before it does: {error}."
        ) from None
    if len(entries) > limits.max_initializers + _MAX_ENTRIES_BESIDE_TENSORS:
        raise ModelRejected("too_many_tensors", f"The archive has {len(entries)} entries.")
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > limits.max_bytes:
        raise ModelRejected(
            "model_too_large", f"The archive holds {unpacked} bytes; at most {limits.max_bytes} are accepted."
        )
    if packed > path.stat().st_size:
        raise ModelRejected("archive_unsafe", "The archive's entries overlap.")
    _check_contents([PurePosixPath(entry.filename) for entry in entries])
    for entry in entries:
        _check_entry(entry)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise ModelRejected(
            "archive_unsafe",
            f"'{name[:100]}' in the archive is compressed, which torch.save never does "
            f"({entry.compress_size} bytes for {entry.file_size}): save the state_dict with torch.save again.",
        )
    if entry.flag_bits & 1:
        raise ModelRejected("archive_unsafe", f"'{name[:100]}' in the archive is encrypted.")
    if name.endswith("/data.pkl") and entry.file_size > _MAX_PICKLE_BYTES:
        raise ModelRejected("archive_unsafe", f"'{name[:100]}' in the archive has {entry.file_size} bytes of pickle.")


def _check_contents(names: list[PurePosixPath]) -> None:
    inner = {PurePosixPath(*name.parts[1:]) for name in names}
    tops = {part.parts[0] for part in inner if part.parts}
    if "constants.pkl" in tops or "code" in tops or "models" in tops or "archive_format" in tops:
        raise ModelRejected(
            "torchscript_not_accepted",
            "The file is a TorchScript or torch.export archive, which holds code. "
            "Save the weights alone: torch.save(model.state_dict(), path), or safetensors.",
        )
    if len(set(names)) != len(names):
        raise ModelRejected("archive_unsafe", "The archive holds two entries of the same name.")
    if len({name.parts[:1] for name in names}) != 1 or PurePosixPath("data.pkl") not in inner:
        raise ModelRejected(
            "not_a_state_dict",
            "The zip archive is none that torch.save wrote: it has no data.pkl in its one folder.",
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values under one name, readers take one or the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _check_safetensors(path: Path, limits: Limits) -> None:
    """Refuse a safetensors file that is cut short or declares more than it holds."""
    size = path.stat().st_size
    if size > limits.max_bytes:
        raise ModelRejected("model_too_large", f"The file has {size} bytes; at most {limits.max_bytes} are accepted.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise ModelRejected("truncated_model", "The file begins like safetensors and ends within its header.")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
            entries = {key: value for key, value in header.items() if key != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise ModelRejected("not_a_state_dict", "The header of the safetensors file cannot be read.") from None
    if len(entries) > limits.max_initializers:
        raise ModelRejected("too_many_tensors", f"The file has more than {limits.max_initializers} tensors.")
    if 8 + length + end > size:
        raise ModelRejected(
            "truncated_model",
            f"The file's tensors end at byte {8 + length + end}, and it has {size}: is it complete?",
        )
