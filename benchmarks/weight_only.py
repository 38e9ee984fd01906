"""Weight-only quantization of a model larger than what may be held: memory and speed, beside ONNX Runtime's own tool.

    python benchmarks/weight_only.py                       # 4 GiB, 8 and 4 bits
    python benchmarks/weight_only.py --gib 1 --bits 4 --folder /data/scratch

The model is a stack of blocks as in a transformer (four square matrices, one four times wider and one back), with
random float32 weights in one file of external data. Each line is a process of its own:

- `copy` reads the model's files and writes them anew, which is the disk's own speed;
- `levity` loads, quantizes (round to nearest, symmetric, groups of 32) and writes, by the library's functions;
- `levity job` is a whole run under a memory limit of 1 GiB: the same, the result loaded and run in two fresh processes,
  sizes, gzip, report; both models would not fit side by side, so latency and agreement are not measured;
- `onnxruntime` is MatMulNBitsQuantizer with the same bits and groups, as its documentation uses it.

Files are dropped from the page cache before each line, and are on the disk (fsync) when the clock stops. Speed is
counted in bytes of the original. `peak` is the most memory that the process ever held in RAM, pages of mapped files
included (VmHWM); `own` leaves those pages out (RssAnon, looked at 50 times a second); `children` is the largest
process that it started, of which mapped files are the larger part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

GROUP = 32
MEMORY = 1 << 30
GIB = 1 << 30
BLOCK = {"q": (1, 1), "k": (1, 1), "v": (1, 1), "o": (1, 1), "up": (1, 4), "down": (4, 1)}


def build(path: Path, size: int, width: int) -> None:
    """A stack of about `size` bytes: an embedding, and as many blocks as fit."""
    from compression.graph.data_file import DataFile, graph_beside

    entries = 4 * width
    blocks = max(1, (size - 4 * entries * width) // (4 * 12 * width**2))
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x0"], "table")]
    shapes = {"table": (entries, width)}
    for index in range(blocks):
        value = f"x{index}"
        for name, (inputs, outputs) in BLOCK.items():
            weight, product = f"block{index}.{name}", f"{name}{index}"
            shapes[weight] = (inputs * width, outputs * width)
            nodes.append(helper.make_node("MatMul", [value, weight], [product], weight))
            nodes.append(helper.make_node("Relu" if name == "up" else "Tanh", [product], [f"{product}a"]))
            value = f"{product}a"
        nodes.append(helper.make_node("Add", [f"x{index}", value], [f"x{index + 1}"]))
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [8])],
        [helper.make_tensor_value_info(f"x{blocks}", TensorProto.FLOAT, [8, width])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with DataFile(path.with_name(f"{path.name}.data")) as file:
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, np.float32)
            values /= np.float32(np.sqrt(shape[0]))
            model.graph.initializer.append(file.put(onnx.numpy_helper.from_array(values, name)))
    path.write_bytes(graph_beside(model, file.path).SerializeToString())
    settle(path.parent)


def settle(folder: Path) -> None:
    """All files on the disk, and none in the page cache."""
    for path in (one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(model: Path, out: Path, _: int) -> dict[str, Any]:
    for path in (model, model.with_name(f"{model.name}.data")):
        shutil.copyfile(path, out / path.name)
    return {}


def levity(model: Path, out: Path, bits: int) -> dict[str, Any]:
    from compression.context import Context
    from compression.graph.load import load
    from compression.publishing import write_any_size
    from compression.quantization.weight_only.step import quantize_weight_only
    from compression.spec import QuantizeWeightOnly

    spec = QuantizeWeightOnly(weight_bits=bits, group_size=GROUP)
    loaded = load(model, held_bytes=0)
    result, details = quantize_weight_only(loaded.model, spec, Context(out, threads=1))
    write_any_size(out / "model.onnx", result, own=out)
    return {"weights": len(details["weights"])}


def levity_job(model: Path, out: Path, bits: int) -> dict[str, Any]:
    from compression.context import Context
    from compression.pipeline import run
    from compression.spec import PipelineSpec, QuantizeWeightOnly

    spec = PipelineSpec(steps=(QuantizeWeightOnly(weight_bits=bits, group_size=GROUP),))
    phases: list[tuple[float, str]] = []
    context = Context(
        out,
        threads=1,
        held_bytes=0,
        memory_bytes=MEMORY,
        progress=lambda phase, *_: phases.append((time.perf_counter(), phase)),
    )
    result = run(model, spec, context)
    phases.append((time.perf_counter(), "end"))
    seconds: dict[str, float] = {}
    for (start, phase), (end, _) in itertools.pairwise(phases):
        seconds[phase] = round(seconds.get(phase, 0) + end - start, 1)
    return {"notes": result.notes, "phases": seconds, "artifacts": {one.name: one.size for one in result.artifacts}}


def peer(model: Path, out: Path, bits: int) -> dict[str, Any]:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(model), bits, GROUP, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)
    return {}


CASES = {"copy": copy, "levity": levity, "levity job": levity_job, "onnxruntime": peer}


def field(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{name}:"))


def one_case(case: str, model: Path, out: Path, bits: int) -> dict[str, Any]:
    """Run a case in this process; what it took."""
    own, ended = [field("RssAnon")], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            own.append(field("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    more = CASES[case](model, out, bits)
    computed = time.perf_counter() - started
    for path in (one for one in out.rglob("*") if one.is_file()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    return {
        "seconds": seconds,
        "seconds_before_fsync": computed,
        "peak": field("VmHWM"),
        "own": max(own),
        "children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "bytes": sum(path.stat().st_size for path in out.rglob("model.onnx*")),
        **more,
    }


def measured(case: str, model: Path, folder: Path, bits: int, limit: int) -> dict[str, Any]:
    """Run a case in a fresh process with `limit` bytes of data at most."""
    out = folder / "out"
    out.mkdir()
    settle(model.parent)
    arguments = [sys.executable, __file__, "--case", case, "--bits", str(bits), "--folder", str(folder)]
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )
    finally:
        shutil.rmtree(out)
    if done.returncode:
        words = done.stderr.strip().splitlines()
        return {"case": case, "bits": bits, "failed": words[-1][:300] if words else f"status {done.returncode}"}
    return {"case": case, "bits": bits, **json.loads(done.stdout.splitlines()[-1])}


def order(cases: Sequence[str], repeats: int, *, last: bool) -> Iterator[str]:
    """Copies and our own runs in turn, since the disk's speed changes; what takes long once, at the end."""
    for _ in range(repeats):
        yield from (case for case in cases if case in ("copy", "levity"))
    yield from (case for case in cases if case == "onnxruntime" or (case == "levity job" and last))


def show(row: dict[str, Any], size: int, disk: float) -> str:
    start = f"{row['case']:12} {row['bits']:>4} bits"
    if "failed" in row:
        return f"{start}  failed: {row['failed']}"
    speed = size / row["seconds"]
    memory = "  ".join(f"{name} {row[name] / 2**20:7.0f} MiB" for name in ("peak", "own", "children"))
    part = f" ({speed / disk:4.2f} of the disk's)" if disk else ""
    file = f"file {row['bytes'] / 2**20:.0f} MiB"
    return f"{start}  {row['seconds']:6.1f} s  {speed / 1e6:6.0f} MB/s{part}  {memory}  {file}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--repeats", type=int, default=3, help="of copies and of Levity's runs, in turn")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, help="where there is room for twice the model")
    parser.add_argument("--limit", type=float, default=14, help="GiB that a process may hold")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        model, out = options.folder / "model" / "model.onnx", options.folder / "out"
        print(json.dumps(one_case(options.case, model, out, options.bits[0])))
        return
    with tempfile.TemporaryDirectory(prefix="weight-only-", dir=options.folder) as name:
        folder = Path(name)
        model = folder / "model" / "model.onnx"
        model.parent.mkdir()
        build(model, int(options.gib * GIB), options.width)
        size = sum(path.stat().st_size for path in model.parent.iterdir())
        print(f"original {size / 2**20:.0f} MiB, ONNX Runtime {_version()}, {os.cpu_count()} cores", flush=True)
        rows, disk = [], 0.0
        for bits in options.bits:
            for case in order(options.cases, options.repeats, last=bits == options.bits[-1]):
                row = measured(case, model, folder, bits, int(options.limit * GIB))
                rows.append(row)
                if case == "copy" and "failed" not in row:
                    disk = size / row["seconds"]
                print(show(row, size, disk), flush=True)
                if "notes" in row:
                    print(json.dumps({key: row[key] for key in ("phases", "notes", "artifacts")}, indent=1), flush=True)
        for bits, case in dict.fromkeys((row["bits"], row["case"]) for row in rows if "failed" not in row):
            found = [one for one in rows if (one["bits"], one["case"]) == (bits, case) and "failed" not in one]
            middle = dict(found[0], seconds=statistics.median(one["seconds"] for one in found))
            copies = [one["seconds"] for one in rows if (one["bits"], one["case"]) == (bits, "copy")]
            disk = size / statistics.median(copies) if copies else 0.0
            for key in ("peak", "own", "children"):
                middle[key] = max(one[key] for one in found)
            print(f"median of {len(found)}: {show(middle, size, disk)}")
    if options.json:
        options.json.write_text(json.dumps({"original": size, "rows": rows}, indent=1))


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


if __name__ == "__main__":
    main()
