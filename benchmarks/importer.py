"""Can the importer be trusted? Real architectures, exported both ways, against ONNX Runtime.

For every architecture and exporter: export, import with `compression.graph.to_torch`, compare the outputs with ONNX
Runtime's, ask for a gradient on every parameter, change all values, write them back, and compare ONNX Runtime on the
written file with the module. Architectures are built without pretrained weights; what stays constant at
initialization (zero heads, ones of normalization) is made random, and running statistics are those of random inputs.

    python benchmarks/importer.py                        # everything; 40 minutes on two busy cores
    python benchmarks/importer.py --only torchvision     # or timm, transformers, node
    python benchmarks/importer.py --model resnet50 --exporter dynamo

Needs the `dev` and `train` extras and `onnxscript` (torch's exporter); `timm` and `transformers` for their families.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compression.graph.load import load_model
from compression.graph.to_torch import to_torch
from compression.graph.write_back import write_back

TOLERANCE = 1e-4  # of the largest absolute output
LEGACY_OPSETS = (11, 14, 17, 20)  # the first that the exporter can express the architecture in
SECONDS_PER_MODEL = 600

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Architecture -> side of its picture; the smallest that it takes.
TORCHVISION = {
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnext50_32x4d"), 64),
    **dict.fromkeys(("densenet121", "densenet169", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"), 64),
    **dict.fromkeys(("mnasnet0_5", "mnasnet1_0", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"), 64),
    **dict.fromkeys(("efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s"), 64),
    **dict.fromkeys(("regnet_y_400mf", "regnet_x_400mf", "regnet_y_800mf", "regnet_x_1_6gf"), 64),
    **dict.fromkeys(("googlenet", "inception_v3"), 96),
    **dict.fromkeys(("convnext_tiny", "convnext_small", "swin_t", "swin_v2_t"), 64),
    **dict.fromkeys(("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"), 64),
    **dict.fromkeys(("fcn_resnet50", "deeplabv3_resnet50", "resnet101", "wide_resnet50_2"), 64),
    **dict.fromkeys(("maxvit_t", "vit_b_32", "vit_b_16", "alexnet", "vgg11", "vgg11_bn"), 224),
}
TIMM = {
    **dict.fromkeys(
        ("convnextv2_atto", "efficientnet_lite0", "tf_efficientnet_b0", "ghostnet_100", "mobilenetv4_conv_small"), 64
    ),
    **dict.fromkeys(
        ("regnetx_002", "resnest14d", "repvgg_a0", "hrnet_w18_small", "poolformer_s12", "res2net50_26w_4s"), 64
    ),
    **dict.fromkeys(("mobilevit_xxs", "edgenext_xx_small", "fastvit_t8"), 256),
    **dict.fromkeys(
        ("vit_tiny_patch16_224", "mixer_s32_224", "levit_128s", "efficientformer_l1", "xcit_nano_12_p16_224"), 224
    ),
    "nf_resnet26": 64,
}
TRANSFORMERS = ("bert", "distilbert", "gpt2", "llama", "t5_encoder", "wav2vec2")


def _vision(family: str, name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    side = (TORCHVISION if family == "torchvision" else TIMM)[name]
    if family == "timm":
        import timm

        return timm.create_model(name, pretrained=False), (torch.randn(2, 3, side, side),)
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False}
    if "deeplab" in name or "fcn" in name or "lraspp" in name:
        options["weights_backbone"] = None
    return torchvision.models.get_model(name, **options), (torch.randn(2, 3, side, side),)


class _Output(nn.Module):
    """A transformers model that takes tensors and gives its first output."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model = model
        self.argument = argument

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(**{self.argument: x}, return_dict=False)[0]
        return result


def _transformer(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    import transformers as t

    small = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = torch.randint(0, 500, (2, 16))
    match name:
        case "bert":
            model = t.BertModel(t.BertConfig(**small, intermediate_size=128), add_pooling_layer=False)
        case "distilbert":
            model = t.DistilBertModel(t.DistilBertConfig(vocab_size=500, dim=64, n_layers=2, n_heads=4, hidden_dim=128))
        case "gpt2":
            model = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4, use_cache=False))
        case "llama":
            config = t.LlamaConfig(**small, intermediate_size=128, num_key_value_heads=2, use_cache=False)
            model = t.LlamaForCausalLM(config)
        case "t5_encoder":
            model = t.T5EncoderModel(
                t.T5Config(vocab_size=500, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
            )
        case _:
            config = t.Wav2Vec2Config(**small, intermediate_size=128, conv_dim=(32,) * 7, num_conv_pos_embeddings=16)
            return _Output(t.Wav2Vec2Model(config), "input_values"), (torch.randn(2, 4000),)
    return _Output(model, "input_ids"), (tokens,)


def _like_trained(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Statistics between fresh ones and those of random inputs, and no parameter that is constant.

    Exporters merge equal vectors, and heads that start as zeros would make every output zero.
    """
    generator = torch.Generator().manual_seed(1)
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _NORMS)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        for norm in norms:
            norm.momentum = 0.5
        if norms:
            model.train()
            model(*(torch.cat([x, torch.randn(x.shape, generator=generator)]) for x in inputs))
    for norm, momentum in norms.items():
        norm.momentum = momentum
    model.eval()


def _export(model: nn.Module, inputs: tuple[torch.Tensor, ...], exporter: str) -> onnx.ModelProto:
    errors = []
    for opset in LEGACY_OPSETS if exporter == "legacy" else (None,):
        buffer = io.BytesIO()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if exporter == "legacy":
                    _export_legacy(model, inputs, buffer, opset)
                else:
                    torch.onnx.export(model, inputs, dynamo=True).save(buffer, external_data=False)
        except Exception as error:  # noqa: BLE001  # whatever the exporter meets is a row of the table
            errors.append(f"opset {opset or 'default'}: {_short(error)}")
            continue
        return onnx.load_from_string(buffer.getvalue())
    raise RuntimeError("; ".join(errors))


def _export_legacy(model: nn.Module, inputs: tuple[torch.Tensor, ...], buffer: io.BytesIO, opset: int | None) -> None:
    """With a free batch axis, as most files in use have it: shapes are then computed in the graph."""
    names = [f"input_{place}" for place in range(len(inputs))]
    torch.onnx.export(
        model,
        inputs,
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=names,
        dynamic_axes={name: {0: "batch"} for name in names},
    )


def _runtime(model: onnx.ModelProto, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})


def _results(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    results = module(*inputs)
    return list(results) if isinstance(results, (tuple, list)) else [results]


def _check_placement(proto: onnx.ModelProto, inputs: tuple[torch.Tensor, ...], results: list[torch.Tensor]) -> None:
    """Run on tensors without values: fails where a shape depends on a value on the device, or where devices mix."""
    module = to_torch(proto, device="meta")
    found = [result.shape for result in _results(module, tuple(value.to("meta") for value in inputs))]
    if found != [result.shape for result in results]:
        msg = f"shapes {found} on a device"
        raise RuntimeError(msg)


def _error(results: list[torch.Tensor], references: list[np.ndarray]) -> float:
    """Largest absolute difference over the largest absolute value, worst of all outputs; infinite if not comparable."""
    worst = 0.0
    for result, reference in zip(results, references, strict=True):
        if tuple(result.shape) != reference.shape or not np.isfinite(reference).all():
            return float("inf")
        difference = np.abs(result.detach().numpy().astype(np.float64) - reference)
        worst = max(worst, float(difference.max()) / max(float(np.abs(reference).max()), 1e-12))
    return worst


def _perturb(module: nn.Module) -> None:
    """Change every parameter and running statistic by up to a tenth."""
    generator = torch.Generator().manual_seed(2)
    bound = {target for binding in module.bindings for target in binding.targets}
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in bound:
                tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator).to(tensor.dtype))


def _check(family: str, name: str, exporter: str) -> dict[str, Any]:
    """One row: what was measured, or `failure`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {"family": family, "model": name, "exporter": exporter}
    stage = "build"
    try:
        model, inputs = _transformer(name) if family == "transformers" else _vision(family, name)
        _like_trained(model, inputs)
        stage = "export"
        proto = _export(model, inputs, exporter)
        row["opset"] = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        stage = "load"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(proto.SerializeToString())
            proto = load_model(path)
        stage = "runtime"
        references = _runtime(proto, inputs)
        stage = "import"
        started = time.perf_counter()
        module = to_torch(proto)
        row["import_s"] = time.perf_counter() - started
        stage = "forward"
        results = _results(module, inputs)
        row["error"] = _error(results, references)
        stage = "placement"
        _check_placement(proto, inputs, results)
        stage = "backward"
        floats = [result for result in results if result.requires_grad]
        sum((result * torch.randn_like(result)).sum() for result in floats).backward()
        row["parameters"] = sum(1 for _ in module.parameters())
        missing = [n for n, p in module.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
        row["without_gradient"] = missing
        row["covered"] = sum(p.numel() for p in module.parameters()) / sum(p.numel() for p in model.parameters())
        stage = "write back"
        _perturb(module)
        written = write_back(module, proto)
        with torch.no_grad():
            row["round_trip"] = _error(_results(module, inputs), _runtime(written, inputs))
    except Exception as error:  # noqa: BLE001  # the reason is a cell of the table
        row["failure"] = f"{stage}: {_short(error)}"
        row["stage"] = stage
        return row
    if row["error"] > TOLERANCE:
        row["failure"] = f"outputs differ by {row['error']:.1e}"
    elif missing:
        row["failure"] = f"no gradient: {', '.join(missing[:3])}"
    elif row["round_trip"] > TOLERANCE:
        row["failure"] = f"round trip differs by {row['round_trip']:.1e}"
    return row


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def _row(family: str, name: str, exporter: str) -> dict[str, Any]:
    """The row, from a process of its own: a crash is a row, and no model sees another's memory."""
    context = multiprocessing.get_context("fork")  # the libraries take longer to import than many a model to check
    receiver, sender = context.Pipe(duplex=False)

    def check() -> None:
        silent = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(silent, descriptor)  # exporters print whole graphs, below Python
        sender.send(_check(family, name, exporter))

    process = context.Process(target=check)
    process.start()
    sender.close()
    row = {"family": family, "model": name, "exporter": exporter, "stage": "process"}
    try:
        return receiver.recv() if receiver.poll(SECONDS_PER_MODEL) else row | {"failure": "out of time"}
    except EOFError:
        return row | {"failure": "crashed"}
    finally:
        process.kill()
        process.join()


def _preload(families: Iterable[str]) -> None:
    """Import what rows need, once."""
    import torch.onnx._internal.exporter._compat  # noqa: F401
    import torchvision  # noqa: F401

    for family in families:
        if family in ("timm", "transformers"):
            importlib.import_module(family)


def _print(row: dict[str, Any]) -> None:
    def cell(key: str, form: str) -> str:
        return format(row[key], form) if key in row else "-"

    print(
        f"| {row['model']} | {row['exporter']} | {row.get('opset', '-')} | {cell('error', '.0e')} "
        f"| {row.get('parameters', 0) - len(row.get('without_gradient', []))}/{row.get('parameters', '-')} "
        f"| {cell('round_trip', '.0e')} | {cell('import_s', '.2f')} | {row.get('failure', 'ok')} |",
        flush=True,
    )


def _import_time(rows: list[dict[str, Any]]) -> None:
    times = [row["import_s"] for row in rows if row["model"] == "resnet50" and "import_s" in row]
    if times:
        print(f"\nimport of ResNet-50: {', '.join(f'{seconds:.2f} s' for seconds in times)}")


def _node_tests() -> None:
    """The share of the onnx package's own node tests that pass."""
    from tests.compression.importer.node_tests import eligible_tests, outcome

    counts: dict[str, int] = {}
    for test in eligible_tests():
        result = outcome(test)
        kind = "passed" if result is None else result.kind
        counts[kind] = counts.get(kind, 0) + 1
    total = sum(counts.values())
    shares = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
    print(f"\nnode tests: {counts.get('passed', 0)} of {total} ({counts.get('passed', 0) / total:.1%}); {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["torchvision", "timm", "transformers", "node"])
    parser.add_argument("--model")
    parser.add_argument("--exporter", choices=["legacy", "dynamo"])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    families: dict[str, Any] = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": TRANSFORMERS}
    # Each model once, then each the other way, so that a run that is cut short has seen them all.
    wanted = [
        (family, name, ("legacy", "dynamo")[(place + turn) % 2])
        for turn in range(2)
        for family, names in families.items()
        for place, name in enumerate(names)
        if options.only in (None, family) and options.model in (None, name)
    ]
    wanted = [item for item in wanted if options.exporter in (None, item[2])]
    print(
        f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"{os.cpu_count()} cores"
    )
    print("\n| model | exporter | opset | error | gradients | round trip | import s | result |")
    print("|---|---|---|---|---|---|---|---|")
    _preload({family for family, _, _ in wanted})
    rows = []
    for item in wanted:
        rows.append(_row(*item))
        _print(rows[-1])
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    for family in families:
        _summary(family, [row for row in rows if row["family"] == family])
    _import_time(rows)
    if options.only in (None, "node") and not options.model:
        _node_tests()


def _summary(family: str, rows: list[dict[str, Any]]) -> None:
    """Exports that the exporter or ONNX Runtime itself refuses say nothing about the importer."""
    if not rows:
        return
    usable = [row for row in rows if row.get("stage") not in ("build", "export", "runtime")]
    good = [row for row in usable if "failure" not in row]
    errors = [row["error"] for row in good]
    median = f", median error {statistics.median(errors):.1e}, worst {max(errors):.1e}" if errors else ""
    print(f"\n{family}: {len(good)} of {len(usable)} exported graphs{median}; {len(rows) - len(usable)} not exported")


if __name__ == "__main__":
    main()
