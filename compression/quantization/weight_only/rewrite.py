"""Putting codes in the place of a weight, in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.graph import walk
from compression.quantization.weight_only.assembly import dequantized_shape
from compression.quantization.weight_only.plan import Plan, Product

DOMAIN = "com.microsoft"
_INT8_PRODUCTS = 4
"""MatMulNBits' `accuracy_level` at which activations may be rounded to 8 bits."""


class Rewriter:
    """A model whose weights are replaced one after another, in place; its nodes are then in no order.

    Args:
        model: Every node of the main graph is named.
        int8_products: Whether products may round activations.
    """

    def __init__(self, model: onnx.ModelProto, *, int8_products: bool) -> None:
        self._graph = model.graph
        self._int8_products = int8_products
        self._nodes = {node.output[0]: node for node in model.graph.node}
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)
        self._unread: set[str] = set()
        if all(entry.domain != DOMAIN for entry in model.opset_import):
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

    def replace(self, plan: Plan, tensors: Sequence[onnx.TensorProto]) -> None:
        """Store `tensors` instead of a weight, and have its readers read them."""
        codes, *others = tensors
        parts = [tensor.name for tensor in tensors]
        # In place: a list of initializers that is built anew for each weight is a copy of the model for each weight.
        self._stored[plan.weight.name].CopyFrom(codes)
        self._graph.initializer.extend(others)
        match plan.form:
            case "MatMulNBits":
                for product in plan.products:
                    self._multiply(plan, product, parts)
            case "GatherBlockQuantized":
                for node in self._readers[plan.weight.name]:
                    self._look_up(plan, node, parts)
            case "DequantizeLinear":
                self._decode(plan, parts)

    def drop_unread(self) -> None:
        """Remove the Transposes whose products read codes now."""
        kept = [node for node in self._graph.node if node.output[0] not in self._unread]
        if len(kept) < len(self._graph.node):
            walk.set_nodes(self._graph, kept)

    def _multiply(self, plan: Plan, product: Product, parts: Sequence[str]) -> None:
        node = self._nodes[product.node]
        stacks, inputs, columns = plan.layout
        attributes: dict[str, Any] = {"accuracy_level": _INT8_PRODUCTS} if self._int8_products else {}
        given, output, name = node.input[0], node.output[0], node.name
        bias = node.input[2] if len(node.input) > 2 else ""
        result = f"{output}_without_bias" if bias else output
        node.CopyFrom(
            helper.make_node(
                "MatMulNBits",
                [given, *parts],
                [result],
                name,
                domain=DOMAIN,
                K=inputs,
                N=stacks * columns,
                bits=plan.stored_bits,
                block_size=plan.group_size,
                **attributes,
            )
        )
        if bias:
            self._graph.node.append(helper.make_node("Add", [result, bias], [output], f"{name}_bias"))
        if product.transposed is not None:
            self._unread.add(product.transposed)

    def _look_up(self, plan: Plan, node: onnx.NodeProto, parts: Sequence[str]) -> None:
        codes, scale, *zero_point = parts
        node.CopyFrom(
            helper.make_node(
                "GatherBlockQuantized",
                [codes, node.input[1], scale, *zero_point],
                node.output,
                node.name,
                domain=DOMAIN,
                bits=plan.stored_bits,
                block_size=plan.group_size,
                gather_axis=0,
                quantize_axis=1,
            )
        )

    def _decode(self, plan: Plan, parts: Sequence[str]) -> None:
        """The weight's name stays, as that of a computed value."""
        name = plan.weight.name
        shape = dequantized_shape(plan)
        stacks, _, columns = plan.layout
        whole = shape == plan.weight.shape
        axis = 0 if plan.per_channel or (stacks == 1 and columns > 1) else 1
        attributes: dict[str, Any] = {} if plan.per_channel else {"block_size": plan.group_size}
        decoded = name if whole else f"{name}_DequantizeLinear_Output"
        self._graph.node.append(
            helper.make_node("DequantizeLinear", parts, [decoded], f"{name}_DequantizeLinear", axis=axis, **attributes)
        )
        if not whole:
            self._graph.initializer.append(
                numpy_helper.from_array(np.array(plan.weight.shape, np.int64), f"{name}_quantized_shape")
            )
            self._graph.node.append(
                helper.make_node("Reshape", [decoded, f"{name}_quantized_shape"], [name], f"{name}_Reshape")
            )
