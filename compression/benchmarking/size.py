"""How large a model is: in a file, compressed for transfer, and in numbers of weights and operations."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from compression.coding.coders import CoderName
from compression.coding.encode import encode
from compression.context import Context
from compression.publishing import data_file
from compression.result import Metric
from compression.signature import ModelSummary

_BLOCK = 1 << 20
_GZIP = zlib.MAX_WBITS | 16
# Level 9 takes about a second for 10 MB of weights and gains little over level 6.
_LEVEL_9_UP_TO = 64 << 20
_WHOLE_UP_TO = 1 << 30
_SAMPLED_BLOCKS = 256


def gzip_size(path: Path, level: int, context: Context) -> int:
    """Bytes of the file as gzip would write it, counted and not kept; above 1 GB estimated from 256 MB of it."""
    packer = zlib.compressobj(level, zlib.DEFLATED, _GZIP)
    size = path.stat().st_size
    step = size // _SAMPLED_BLOCKS if size > _WHOLE_UP_TO else _BLOCK
    total = read = 0
    with path.open("rb") as file:
        for start in range(0, size, step):
            context.check_cancelled()
            file.seek(start)
            block = file.read(_BLOCK)
            read += len(block)
            total += len(packer.compress(block))
    total += len(packer.flush())
    return total if read == size else round(total * size / read)


def model_bytes(path: Path, beside: Sequence[Path] = ()) -> int:
    """Bytes of a model's file, and of those beside it where it exceeds one."""
    return sum(part.stat().st_size for part in _parts(path, beside))


def gzip_level(largest: int) -> int:
    """The level for files of which the largest has so many bytes: 9, or 6 above 64 MB."""
    return 9 if largest <= _LEVEL_9_UP_TO else 6


def size_metrics(  # noqa: PLR0917 - two of everything, and always all of them
    original: Path,
    compressed: Path,
    before: ModelSummary,
    after: ModelSummary,
    context: Context,
    beside: Sequence[Path] = (),
) -> tuple[list[Metric], list[str]]:
    """Sizes of the two files and counts from their summaries, and notes on them.

    Args:
        original: The original's graph.
        compressed: The result's.
        before: Summary of the original.
        after: Of the result.
        context: Asked whether to stop.
        beside: Files in which the original keeps weights, if it does.
    """
    old, new = model_bytes(original, beside), model_bytes(compressed)
    level = gzip_level(max(old, new))
    metrics = [
        _smaller("file_bytes", "bytes", old, new),
        _smaller(
            "gzip_bytes",
            "bytes",
            sum(gzip_size(part, level, context) for part in _parts(original, beside)),
            sum(gzip_size(part, level, context) for part in _parts(compressed)),
        ),
        _smaller("parameters", "count", before.parameters, after.parameters),
        _smaller("nonzero_parameters", "count", before.nonzero_parameters, after.nonzero_parameters),
    ]
    if after.macs is not None:
        metrics.append(_smaller("macs", "count", before.macs, after.macs))
    notes = []
    if new > old:
        grown = new / old - 1
        notes.append(f"The file grew by {grown:.1%}: what the steps added weighs more than what they saved.")
    if level != 9:
        notes.append(f"Sizes after gzip are those of level {level}, because a file is larger than 64 MB.")
    if max(old, new) > _WHOLE_UP_TO:
        notes.append("Sizes after gzip of files above 1 GB are estimates from 256 MB, spread evenly over each.")
    return metrics, notes


def coded_metric(
    original: Path, coded: Path, coder: CoderName, context: Context, beside: Sequence[Path] = ()
) -> tuple[Metric, str]:
    """Bytes of the coded result beside those of the original coded likewise, and a note on the two files themselves.

    An original that exceeds one file is not coded.
    """
    before = None
    if len(_parts(original, beside)) == 1:
        before = len(encode(original.read_bytes(), coder=coder, between=context.check_cancelled).data)
    upload, after = model_bytes(original, beside), coded.stat().st_size
    note = f"{coded.name} has {after:,} bytes, the original {upload:,}: {size_verdict(upload / after)}."
    return _smaller("coded_bytes", "bytes", before, after), note


def _parts(path: Path, beside: Sequence[Path] = ()) -> list[Path]:
    return [path, *(beside or (part for part in (data_file(path),) if part.exists()))]


def _smaller(name: str, unit: str, before: int | None, after: int) -> Metric:
    ratio = before / after if before is not None and after else None
    return Metric(
        name=name,
        unit=unit,
        direction="lower_is_better",
        original=before,
        result=after,
        ratio=ratio,
        verdict="" if ratio is None else size_verdict(ratio),
    )


def size_verdict(ratio: float) -> str:
    """A ratio of sizes in words.

    >>> size_verdict(3.608), size_verdict(0.8), size_verdict(1.0)
    ('3.61x smaller', '1.25x larger', 'the same')
    """
    if ratio == 1:
        return "the same"
    return f"{ratio:.2f}x smaller" if ratio > 1 else f"{1 / ratio:.2f}x larger"
