"""Channel pruning against Torch-Pruning, and on every torchvision classifier.

    python benchmarks/channel_pruning.py compare           # ResNet-18 and -50 at ratio 0.5, beside Torch-Pruning
    python benchmarks/channel_pruning.py latency           # to half of the measured latency, which is measured again
    python benchmarks/channel_pruning.py sweep             # every classifier by 30 %; takes hours
    python benchmarks/channel_pruning.py sweep swin_t shufflenet_v2_x1_0

Architectures have random weights: MACs, parameters and latency depend on shapes alone. Latencies are medians of calls
of ONNX Runtime that alternate with the original's in one process, on one thread. The sweep takes each architecture in a
process of its own, by both of torch's exporters up to 60 M parameters and by the newer one above. Each pruned file is
checked by ONNX's checker, then loaded and run by a fresh process, whose outputs must equal this one's.

Torch-Pruning's published 6.41 M parameters of ResNet-50 come from its script `reproduce/benchmark_latency.py`, which
leaves no layer out: half of the 1,000 classes go too, which is 0.51 M of the classifier's parameters. Levity never
removes outputs of the model, and is compared with Torch-Pruning told to do the same; the table has both.

Needs the `dev` and `train` extras and `onnxscript` (torch's exporter); `torch-pruning==1.6.1` for the peer.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compression.benchmarking.latency import time_calls
from compression.context import Context
from compression.graph.load import load_model
from compression.pruning.channel_spec import PruneChannels
from compression.pruning.channels.step import prune_channels
from compression.publishing import write_model
from compression.spec import BenchmarkSpec
from compression.verification import Verifier, reference_outputs

# G MACs and M parameters of ResNet-18 and -50 after pruning by 0.5, as Torch-Pruning publishes them.
PUBLISHED = {"resnet18": (0.487, 3.06), "resnet50": (1.07, 6.41)}
BOTH_EXPORTERS = 60e6  # parameters up to which both are tried


def export(module: torch.nn.Module, path: Path, *, dynamo: bool) -> onnx.ModelProto:
    """The module as a canonical ONNX model with an open batch axis."""
    write(module, path, dynamo=dynamo)
    return load_model(path)


def write(module: torch.nn.Module, path: Path, *, dynamo: bool, size: int = 224) -> None:
    """The module as ONNX, by torch's newer exporter with its weights in a second file."""
    x = torch.randn(2, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            torch.onnx.export(
                module.eval(), (x,), path, dynamo=True, external_data=True, dynamic_shapes=({0: batch},), verbose=False
            )
        else:
            torch.onnx.export(
                module.eval(), (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
            )


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def speed_up(original: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[float, tuple[float, float]]:
    """How much faster a call at batch 1 is, with the 95 % interval."""
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    calls = []
    for model in (original, pruned):
        ready = session(model)
        name = ready.get_inputs()[0].name
        calls.append(lambda ready=ready, name=name: ready.run(None, {name: x}))
    timings = time_calls(*calls, BenchmarkSpec(max_seconds=40, min_rounds=30), seed=0)
    found = timings.speed_up(seed=0)
    return found.ratio, found.interval


def peer(name: str, path: Path, *, all_classes: bool) -> tuple[onnx.ModelProto, float, float] | None:
    """Torch-Pruning's result at the same ratio: the model, MACs and parameters as it counts them.

    Without `all_classes` it is called as its published script does.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    import torch_pruning

    module, x = build(name), torch.randn(1, 3, 224, 224)
    pruner = torch_pruning.pruner.MagnitudePruner(
        module,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        round_to=8 if all_classes else 2,
        ignored_layers=[module.fc] if all_classes else [],
    )
    pruner.step()
    macs, parameters = torch_pruning.utils.count_ops_and_params(module, x)
    return export(module, path, dynamo=True), macs, parameters


def compare(folder: Path) -> None:
    print("| model | pruned by | G MACs | M parameters | MACs before/after | speed-up (95 % interval) | share |")
    print("|---|---|---|---|---|---|---|")
    for name, published in PUBLISHED.items():
        original = export(build(name), folder / "original.onnx", dynamo=True)
        spec = PruneChannels(amount=0.5, round_to=8)
        started = time.perf_counter()
        pruned, details = prune_channels(original, spec, Context(workdir=folder), 0)
        seconds = time.perf_counter() - started
        before: Any = details["macs_before"]
        rows = [(f"Levity ({seconds:.1f} s)", pruned, details["macs"], details["parameters"])]
        share = published[1] * 1e6 / float(str(details["parameters_before"]))
        fitted, facts = prune_channels(
            original, PruneChannels(target_parameters=share, round_to=8), Context(workdir=folder), 0
        )
        rows.append(("Levity, published parameters as target", fitted, facts["macs"], facts["parameters"]))
        for who, all_classes in (("Torch-Pruning", True), ("Torch-Pruning, half of the classes gone too", False)):
            other = peer(name, folder / "peer.onnx", all_classes=all_classes)
            if other is not None:
                rows.append((who, *other))
        for who, model, macs, parameters in rows:
            ratio, (low, high) = speed_up(original, model)
            less = before / macs
            print(
                f"| {name} | {who} | {macs / 1e9:.3f} | {parameters / 1e6:.2f} | {less:.2f} | "
                f"{ratio:.2f} [{low:.2f}, {high:.2f}] | {ratio / less:.0%} |",
                flush=True,
            )
        print(f"| {name} | Torch-Pruning, as published | {published[0]} | {published[1]} | | | |", flush=True)


def latency(names: list[str], folder: Path) -> None:
    """Targets of latency, and what a measurement of its own says of the results."""
    print("| model | target | amount | candidates | seconds | MACs left | latency left, by the step | measured again |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names or ["resnet18", "mobilenet_v2", "resnet50"]:
        original = export(build(name), folder / "original.onnx", dynamo=True)
        for target in (0.75, 0.5):
            started = time.perf_counter()
            spec = PruneChannels(target_latency=target, round_to=8)
            pruned, details = prune_channels(original, spec, Context(workdir=folder, threads=1), 0)
            seconds = time.perf_counter() - started
            facts: Any = details
            timed = facts["latency"]
            ratio, (low, high) = speed_up(original, pruned)
            print(
                f"| {name} | {target} | {facts['amount']:.3f} | {len(timed['candidates'])} | {seconds:.0f} | "
                f"{facts['macs'] / facts['macs_before']:.3f} | "
                f"{timed['ratio']:.3f} [{timed['interval'][0]:.3f}, {timed['interval'][1]:.3f}] | "
                f"{1 / ratio:.3f} [{1 / high:.3f}, {1 / low:.3f}] |",
                flush=True,
            )


def classifiers() -> dict[str, int]:
    """torchvision's classifiers with their parameters, the small ones first."""
    sizes = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        sizes[name] = min(weights.meta["num_params"] for weights in torchvision.models.get_model_weights(name))
    return dict(sorted(sizes.items(), key=lambda one: one[1]))


def one(name: str, folder: Path, *, dynamo: bool) -> str:
    """Prune one architecture by 30 %; what became of it as a row of the table."""
    size = 299 if name.startswith("inception") else 224
    # Written first and read when the module is gone: the largest weigh 2.6 GB.
    write(build(name), folder / "original.onnx", dynamo=dynamo, size=size)
    model = load_model(folder / "original.onnx")
    started = time.perf_counter()
    pruned, details = prune_channels(model, PruneChannels(amount=0.3), Context(workdir=folder), 0)
    seconds = time.perf_counter() - started
    path = folder / "pruned.onnx"
    write_model(path, pruned)
    x = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    inputs = {pruned.graph.input[0].name: x}
    del model, pruned
    onnx.checker.check_model(str(path))
    with Verifier(folder, threads=1) as verifier:
        verifier.verify(path, inputs, reference_outputs(path, inputs, 1))
    facts: Any = details
    macs = f"{facts['macs'] / facts['macs_before']:.3f}" if facts["macs_before"] else "not counted"
    parameters = facts["parameters"] / facts["parameters_before"]
    kept = len(facts.get("kept_whole", ()))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{parameters:.3f} | {macs} | {len(facts['groups'])} | {kept} | {seconds:.1f} | {memory:.1f} |"


def sweep(names: list[str]) -> int:
    """A row for each architecture and exporter, from a process of its own; how many architectures failed."""
    print("| model | exporter | parameters left | MACs left | groups | nodes that kept their channels | seconds | GB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    sizes = classifiers()
    failed = set()
    for name in names or sizes:
        for exporter in ("dynamo", "legacy") if sizes[name] <= BOTH_EXPORTERS else ("dynamo",):
            done = subprocess.run(
                [sys.executable, __file__, "one", name, exporter], check=False, capture_output=True, text=True
            )
            row = done.stdout.strip().rpartition("\n")[2]
            if done.returncode != 0:
                failed.add(name)
                row = f"FAILED ({done.returncode}): {done.stderr.strip().rpartition(chr(10))[2][:150]} |"
            print(f"| {name} | {exporter} | {row}", flush=True)
    count = len(names or sizes)
    print(f"\n{count - len(failed)} of {count} architectures prune by 30 %, reload in a fresh process and run.")
    return len(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compare", "latency", "sweep", "one"))
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "sweep":
        sys.exit(1 if sweep(arguments.models) else 0)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "compare":
            compare(Path(folder))
        elif arguments.what == "latency":
            latency(arguments.models, Path(folder))
        else:
            name, exporter = arguments.models
            print(one(name, Path(folder), dynamo=exporter == "dynamo"))


if __name__ == "__main__":
    main()
