"""What graphs of networks have in common, so that a small one does not have to say it again.

A preset dictionary of deflate (RFC 1950, section 2.2): nodes, attributes and names in protobuf's wire format, as
exporters write them, the most frequent last. It belongs to version 1 of the format and never changes.
"""

from __future__ import annotations


def _ints(name: bytes, *values: int) -> bytes:
    return _attribute(name, b"".join(b"@" + bytes([value]) for value in values) + b"\xa0\x01\x07")


def _int(name: bytes, value: int) -> bytes:
    return _attribute(name, b"\x18" + bytes([value]) + b"\xa0\x01\x02")


def _float(name: bytes, value: bytes) -> bytes:
    return _attribute(name, b"\x15" + value + b"\xa0\x01\x01")


def _attribute(name: bytes, value: bytes) -> bytes:
    body = b"\n" + bytes([len(name)]) + name + value
    return b"*" + bytes([len(body)]) + body


def _operator(name: bytes) -> bytes:
    return b'"' + bytes([len(name)]) + name


_ONE = b"\x00\x00\x80\x3f"

DICTIONARY = b"".join(
    (
        b"MatMulIntegerDynamicQuantizeLinearDequantizeLinear_quantized_scale_zero_pointDequantizeLinear_Output",
        b"\x12\x14ai.onnx.ml\x12\x12com.microsoftMatMulNBitsblock_sizeaccuracy_levelpkg.torch.onnxmain_graph",
        *map(_operator, (b"Concat", b"Softmax", b"Slice", b"Split", b"Gather", b"Cast", b"Unsqueeze", b"Squeeze")),
        *map(_operator, (b"Shape", b"Sqrt", b"Pow", b"Erf", b"Div", b"Sub", b"Where", b"Expand", b"Tanh", b"Gelu")),
        *map(_operator, (b"LayerNormalization", b"ReduceMean", b"Clip", b"HardSwish", b"HardSigmoid", b"Sigmoid")),
        _int(b"axis", 255),
        _int(b"keepdims", 1),
        _ints(b"perm", 0, 2, 1, 3) + _operator(b"Transpose"),
        _int(b"allowzero", 0) + _operator(b"Reshape"),
        _float(b"epsilon", b"\xac\xc5\x27\x37") + _float(b"momentum", b"\x66\x66\x66\x3f"),
        _operator(b"BatchNormalization") + _int(b"training_mode", 0),
        _operator(b"AveragePool") + _int(b"count_include_pad", 1) + _operator(b"GlobalAveragePool"),
        b"/blocks/layers.features.conv.bn.attention.self.query.key.value.output.dense.classifier.embeddings.encoder",
        b"running_mean.running_varnum_batches_trackedin_proj_weightlayernormdownsamplenorm1norm2fc1fc2",
        b"\x08\x07\x12\x07pytorch\x1a\x06",
        b"inputlogitsoutputimageonnx::Conv_batchbatch_size\x12\nmain_graphtorch_jit",
        _operator(b"Add") + _operator(b"Mul") + _operator(b"MatMul"),
        b"\n\x13/3/MaxPool_output_0",
        _operator(b"MaxPool"),
        _int(b"ceil_mode", 0) + _ints(b"dilations", 1, 1) + _ints(b"kernel_shape", 2, 2) + _ints(b"pads", 0, 0, 0, 0),
        _int(b"storage_order", 0) + _ints(b"strides", 2, 2) + b"2\x00",
        b"\x12\x13/4/Flatten_output_0\x1a\x00" + _operator(b"Flatten") + _int(b"axis", 1),
        b"2\x00\ns\n\x13/4/Flatten_output_0\n\x085.weight\n\x065.bias\x12\x10/5/Gemm_output_0\x1a\x00",
        _operator(b"Gemm") + _float(b"alpha", _ONE) + _float(b"beta", _ONE) + _int(b"transB", 1) + b"2\x00\n.",
        b"\n\x10/5/Gemm_output_0\x12\x10/6/Relu_output_0\x1a\x00" + _operator(b"Relu") + b"2\x00\n\x96\x01",
        b"\n\x08conv1.weight\n\x06conv1.bias\n\x080.weight\n\x060.bias\x12\x10/0/Conv_output_0\x1a\x00",
        _operator(b"Conv"),
        _ints(b"dilations", 1, 1) + _int(b"group", 1) + _ints(b"kernel_shape", 5, 5) + _ints(b"pads", 0, 0, 0, 0),
        _ints(b"strides", 1, 1) + _ints(b"kernel_shape", 3, 3) + _ints(b"pads", 1, 1, 1, 1) + b"2\x00",
        b"*\x0c\x082\x10\x01B\x062.bias*\x14\x082\x08\x14\x08\x05\x08\x05\x10\x01B\x082.weightJ\x80\x80\x01",
        b"Z \n\x05image\x12\x17\n\x15\x08\x01\x12\x11\n\x03\x12\x01n\n\x02\x08\x01\n\x02\x08\x1c\n\x02\x08\x1c",
        b"Z\x1e\n\x05input\x12\x15\n\x13\x08\x01\x12\x0f\n\x07\x12\x05batch\n\x03\x08\xe0\x01",
        b"b\x19\n\x06logits\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\nb\x1b\n\x06output",
        b"B\x04\n\x00\x10\x11B\x02\x10\x11\x08\x08\x12\x00\x1a\x002\x00:\x94\t\n\x93\x01\n\x05image\n\x080.weight",
    )
)
