"""What a runtime really computes in integers, read off the model after its own optimizations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx

from compression.context import Context
from compression.quantization import prepare

_PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Operators of ONNX Runtime, and ONNX's own, that compute on whole numbers.
_INTEGER = frozenset(
    {
        "QGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "QAttention",
    }
)
_FLOAT_LAYERS = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU", "RNN"}
)


@dataclass(frozen=True)
class Kernels:
    """Nodes of an optimized graph by operator.

    Attributes:
        integer: Those that compute on whole numbers.
        float_layers: Layers that compute on floats.
        pairs: QuantizeLinear and DequantizeLinear that were not fused.
    """

    integer: dict[str, int]
    float_layers: dict[str, int]
    pairs: int

    def details(self) -> dict[str, object]:
        return {"integer_nodes": self.integer, "float_layers": self.float_layers, "unfused_pairs": self.pairs}


def kernels(model: onnx.ModelProto, context: Context) -> Kernels:
    """Load a model in ONNX Runtime and count what it has made of it.

    Raises:
        StepFailed: `unsupported_by_runtime` when it cannot be loaded.
    """
    import onnxruntime  # noqa: PLC0415 - half a second that only a run needs

    with prepare.temporary_folder(context) as folder, prepare.runtime_failures("loading the quantized model"):
        path = folder / "optimized.onnx"
        # Beyond this level operators are renamed for memory layouts, and nothing more becomes an integer.
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        prepare.session(
            model.SerializeToString(), context, graph_optimization_level=level, optimized_model_filepath=str(path)
        )
        count = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    return Kernels(
        {name: number for name, number in sorted(count.items()) if name in _INTEGER or name.startswith("QLinear")},
        {name: number for name, number in sorted(count.items()) if name in _FLOAT_LAYERS},
        sum(count[name] for name in _PAIRS),
    )
