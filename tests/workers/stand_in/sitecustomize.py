"""In a test's child process, replaces the library by one that does what its model file says.

Python imports this module at start-up when its folder is on PYTHONPATH. The "model" is JSON: `{"do": <name>, …}`.
What takes long to import is replaced too, because there is a child for each test.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import types
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def run(model, spec, context, data=None, *, student=None, model_sha256=None, data_sha256=None, student_sha256=None):
    from compression.cache import step_keys
    from compression.quantization.isa import cpu_facts

    order = json.loads(model.read_bytes())
    keys = step_keys(model_sha256, data_sha256 or {}, spec, cpu_facts())
    cached = [context.step_cache.get(key) is not None for key in keys]
    context.progress("loading", 0.0, "stand-in")
    ORDERS[order.pop("do")](context, keys, cached, data, **order)
    return result(spec, context, cached, order)


def summary():
    from compression.signature import ModelSummary

    return ModelSummary(
        format="onnx", ir_version=8, opsets={"ai.onnx": 17}, producer="", inputs=(), outputs=(), operators={}, nodes=0,
        parameters=0, nonzero_parameters=0, parameter_bytes=0, macs=None, file_bytes=1, external_data_bytes=0,
        quantized=False,
    )  # fmt: skip


def result(spec, context, cached, order):
    from compression.result import ArtifactFile, PipelineResult, StepResult

    announced = order.get("announce", ["model.onnx"])
    artifacts = []
    for name in announced:
        path = context.workdir / "out" / name
        content = path.read_bytes() if path.is_file() else b""
        sha256 = order.get("sha256", hashlib.sha256(content).hexdigest())
        artifacts.append(
            ArtifactFile(name=name, sha256=sha256, size=len(content), media_type="application/octet-stream")
        )
    return PipelineResult(
        model=summary(),
        compressed=summary(),
        data={},
        steps=tuple(
            StepResult(index=index, type=step.type, seconds=0.0, cached=hit, details={})
            for index, (step, hit) in enumerate(zip(spec.steps, cached, strict=True))
        ),
        metrics=(),
        notes=(),
        artifacts=tuple(artifacts),
        seconds=0.0,
    )


def _out(context):
    folder = context.workdir / "out"
    folder.mkdir(exist_ok=True)
    return folder


def succeed(context, keys, cached, data, **order):
    (_out(context) / "model.onnx").write_bytes(b"compressed")


def steps(context, keys, cached, data, crash_after=None, **order):
    """Finish each step that the cache lacks; die after one of them, but only while the cache is empty."""
    fresh = not any(cached)
    start = max((index + 1 for index, hit in enumerate(cached) if hit), default=0)
    for index in range(start, len(keys)):
        folder = context.workdir / "steps" / str(index)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(f"after step {index}".encode())
        context.progress("pruning", index / len(keys))
        context.step_cache.put(keys[index], folder)
        if fresh and crash_after == index:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGSEGV)
    succeed(context, keys, cached, data)


def epochs(context, keys, cached, data, crash_after=None, **order):
    """Count to three epochs with a checkpoint after each; die after one of them, unless going on from a checkpoint."""
    from compression.cache import checkpoint_key

    begun = context.step_cache.get(checkpoint_key(keys[0]))
    first = int((begun / "epoch").read_text()) if begun else 0
    for epoch in range(first, 3):
        context.progress("training", epoch / 3, f"epoch {epoch} after {first}")
        folder = context.workdir / "checkpoints" / str(epoch)
        folder.mkdir(parents=True)
        (folder / "epoch").write_text(str(epoch + 1))
        context.step_cache.put(checkpoint_key(keys[0]), folder)
        if not first and crash_after == epoch:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGSEGV)
    (_out(context) / "model.onnx").write_bytes(f"trained from epoch {first}".encode())


def poison(context, keys, cached, data, **order):
    """Claim to have finished somebody else's step."""
    folder = context.workdir / "steps"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"poison")
    context.step_cache.put("f" * 64, folder)
    (folder / "link").symlink_to("/etc/hostname")
    context.step_cache.put(keys[0], folder)
    succeed(context, keys, cached, data)


def sleep(context, keys, cached, data, seconds=60, **order):
    context.progress("benchmarking", 0.5, "sleeping")
    time.sleep(seconds)
    succeed(context, keys, cached, data)


def stubborn(context, keys, cached, data, **order):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(context, keys, cached, data)


def chatter(context, keys, cached, data, **order):
    for number in range(5000):
        context.progress("pruning", number / 5000)
    context.progress("clustering", 0.9)
    context.progress("quantizing", 0.95)
    succeed(context, keys, cached, data)


def talk(context, keys, cached, data, line, **order):
    """Write anything on the private line. Its descriptor is the one that the runner made of standard output."""
    os.write(LINE, line.encode("latin-1"))
    time.sleep(10)


def endless_line(context, keys, cached, data, **order):
    while True:
        os.write(LINE, b"x" * 65536)


def die(context, keys, cached, data, *, number=None, status=3, **order):
    print("last words", file=sys.stderr, flush=True)  # noqa: T201
    print("noise on standard output", flush=True)  # noqa: T201
    if number is not None:
        os.kill(os.getpid(), number)
        time.sleep(10)
    os._exit(status)


def abort_without_memory(context, keys, cached, data, **order):
    print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)  # noqa: T201
    os.abort()


def allocate(context, keys, cached, data, size, **order):
    bytearray(size)


def reject(context, keys, cached, data, retryable=False, **order):
    from compression.errors import StepFailed

    raise StepFailed("operator_unsupported", "Node n1 has an operator that cannot be pruned.", retryable=retryable)


def explode(context, keys, cached, data, **order):
    raise RuntimeError("a defect")


def bad_artifact(context, keys, cached, data, what, **order):
    path = _out(context) / "model.onnx"
    if what == "symlink":
        path.symlink_to("/etc/hostname")
    elif what == "hardlink":
        (context.workdir / "other").write_bytes(b"x")
        path.hardlink_to(context.workdir / "other")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "changed":
        path.write_bytes(b"x")
    elif what == "out_is_link":
        path.parent.rmdir()
        (context.workdir / "elsewhere").mkdir()
        path.parent.symlink_to("elsewhere")
        path.write_bytes(b"x")
    elif what == "closed_folder":
        path.write_bytes(b"x")
        inner = context.workdir / "closed" / "inner"
        inner.mkdir(parents=True)
        (inner / "file").touch()
        inner.parent.chmod(0)


def look_around(context, keys, cached, data, paths, **order):
    """Try what a confined process must not be able to do, and report what worked."""
    found = {"readable": [], "writable": [], "environment": sorted(os.environ), "processes": 0, "connected": False}
    for name in paths:
        path = Path(name)
        with suppress(OSError):
            found["readable"] += [name] if (list(path.iterdir()) if path.is_dir() else path.read_bytes()) else []
        with suppress(OSError):
            mark = path / f"intruder-{os.getpid()}" if path.is_dir() else path
            mark.touch()
            found["writable"].append(name)
            if path.is_dir():
                mark.unlink()
    found["processes"] = sum(path.name.isdigit() for path in Path("/proc").iterdir())
    for family, address in ((socket.AF_INET, ("127.0.0.1", order["port"])), (socket.AF_UNIX, order["unix"])):
        with socket.socket(family) as client:
            client.settimeout(2)
            with suppress(OSError):
                client.connect(address)
                found["connected"] = True
    found["address_space"], _ = resource.getrlimit(resource.RLIMIT_AS)
    found["core"], _ = resource.getrlimit(resource.RLIMIT_CORE)
    found["capabilities"] = next(
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    found["user_namespaces"] = ctypes.CDLL(None).unshare(0x10000000) == 0
    (_out(context) / "model.onnx").write_text(json.dumps(found))


def leave_grandchild(context, keys, cached, data, **order):
    child = subprocess.Popen(["/bin/sleep", "60"])
    (_out(context) / "model.onnx").write_text(str(child.pid))


ORDERS = {
    function.__name__: function
    for function in (
        succeed, steps, epochs, poison, sleep, stubborn, chatter, talk, endless_line, die, abort_without_memory,
        allocate, reject, explode, bad_artifact, look_around, leave_grandchild,
    )
}  # fmt: skip

LINE = -1
_dup = os.dup


def _remember(descriptor):
    global LINE  # noqa: PLW0603
    copy = _dup(descriptor)
    if descriptor == 1:
        LINE = copy
    return copy


os.dup = _remember


@dataclass(frozen=True)
class DataSource:
    path: Path
    format: str | None = None
    images: object = None


def inspect(source, *, held_bytes):
    from compression.errors import ModelRejected

    raise ModelRejected("not_onnx", f"{source} is no model.")


def convert(model, source, out, *, threads=0):
    """What the file says is made of it: names and contents."""
    from compression.graph.architectures.spec import ModelSource

    assert isinstance(source, ModelSource)
    files = json.loads(model.read_bytes())["make"]
    out.mkdir()
    for name, content in files.items():
        (out / name).write_text(content)
    return types.SimpleNamespace(summary=summary(), files=[out / name for name in files])


def decode_file(path, out):
    """A graph of what stands behind the magic number, which is found to be a model."""
    out.mkdir()
    (out / "model.onnx").write_bytes(path.read_bytes()[6:])
    sys.modules["workers.execution"].inspect_model = lambda _: summary()
    return out / "model.onnx"


def describe(path):
    from compression.result import ArtifactFile

    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return ArtifactFile(name=path.name, sha256=digest, size=len(content), media_type="application/octet-stream")


def replace(name, **contents):
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module


replace("compression.pipeline", run=run)
replace("compression.data", DataSource=DataSource, inspect_dataset=inspect)
replace("compression.graph.inspect", inspect_model=inspect)
replace("compression.graph.architectures.convert", convert=convert)
replace("compression.coding.decode", decode_file=decode_file)
replace("compression.publishing", describe=describe)
for heavy in ("numpy", "numpy.ma", "numpy.random", "onnxruntime"):
    replace(heavy)
replace("onnxruntime.quantization")
