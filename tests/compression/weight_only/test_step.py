"""Weight-only quantization: what the runtime computes, against the float model of what the codes stand for."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from compression.errors import DataRejected, StepFailed
from compression.graph.inspect import summarize
from compression.quantization.weight_only import capabilities
from compression.spec import QuantizeWeightOnly
from tests.compression.models import cnn, embedding, make_model, mlp, value, weight
from tests.compression.quantizing import (
    apply,
    dataset,
    digits_accuracy,
    digits_calibration,
    digits_model,
    outputs,
    sqnr,
    stored,
)
from tests.compression.weight_only.models import conv_net, dequantized, lstm, stack, tied

_INPUTS = {
    "x": lambda rng, model: rng.standard_normal(
        [axis.dim_value or 3 for axis in model.graph.input[0].type.tensor_type.shape.dim]
    ).astype(np.float32),
    "ids": lambda rng, model: rng.integers(0, 50, (3, 5)),
}
MODELS = {
    "cnn": cnn,
    "mlp": mlp,
    "embedding": embedding,
    "convolutions": conv_net,
    "convolutions in groups": lambda: conv_net(4),
    "depthwise": lambda: conv_net(8),
    "lstm": lstm,
    "stack": stack,
    "tied": tied,
}


def inputs(model):
    name = model.graph.input[0].name
    return {name: _INPUTS[name](np.random.default_rng(1), model)}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", MODELS)
def test_the_runtime_computes_with_what_the_codes_stand_for(kind, bits, symmetric, tmp_path):
    model = MODELS[kind]()
    spec = QuantizeWeightOnly(weight_bits=bits, group_size=16, symmetric=symmetric, int8_products=False)
    result, details = apply(model, spec, tmp_path)
    given = inputs(model)
    expected = dequantized(model, result)
    np.testing.assert_allclose(outputs(result, **given), outputs(expected, **given), rtol=1e-4, atol=2e-5)
    entries = {entry["name"]: entry for entry in details["weights"]}
    for name, entry in entries.items():
        assert "skipped" not in entry, entry
        held = {part.name: part for part in result.graph.initializer}
        used = sum(len(held[part].raw_data) for part in held if part.startswith(f"{name}_") and "shape" not in part)
        assert entry["bits_at_rest"] == pytest.approx(8 * used / stored(model)[name].size, abs=1e-3)
        error = np.square(stored(expected)[name].astype(np.float64) - stored(model)[name]).mean()
        assert entry["mean_squared_error"] == pytest.approx(error, rel=1e-3)
    before, after = summarize(model, 0, 0), summarize(result, 0, 0)
    assert (after.parameters, after.macs, after.quantized) == (before.parameters, before.macs, True)
    zeros = sum(int((values == 0).sum()) for name, values in stored(expected).items() if name in entries)
    assert after.parameters - after.nonzero_parameters >= zeros


@pytest.mark.parametrize(
    ("kind", "bits", "forms"),
    [
        ("cnn", 4, ["DequantizeLinear", "DequantizeLinear", "MatMulNBits"]),
        ("embedding", 2, ["GatherBlockQuantized", "MatMulNBits"]),
        ("lstm", 8, ["DequantizeLinear", "DequantizeLinear"]),
        ("stack", 4, ["DequantizeLinear", "DequantizeLinear"]),
        ("tied", 4, ["MatMulNBits"]),
    ],
)
def test_each_kind_of_weight_has_its_form(kind, bits, forms, tmp_path):
    result, details = apply(MODELS[kind](), QuantizeWeightOnly(weight_bits=bits, group_size=16), tmp_path)
    assert [entry["form"] for entry in details["weights"]] == forms
    assert {node.op_type for node in result.graph.node} >= set(forms)
    # Nothing is left that would turn a weight at run time.
    assert all(node.op_type != "Transpose" for node in result.graph.node)


def test_bits_are_stored_in_what_the_runtime_reads(tmp_path):
    """ONNX Runtime 1.32 reads 2, 4 and 8 bits in all forms; the report tells what the others take."""
    assert {capabilities.width("MatMulNBits", bits) for bits in range(2, 9)} == {2, 4, 8}
    for bits, held in {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}.items():
        _, details = apply(mlp(), QuantizeWeightOnly(weight_bits=bits), tmp_path)
        assert details["weights"][0]["stored_bits"] == held
        assert details["weights"][0]["bits_at_rest"] == held + 1  # one float32 scale for 32 weights


@pytest.mark.parametrize(("bits", "opset", "element"), [(2, 25, "INT2"), (4, 21, "INT4"), (8, 21, "INT8")])
def test_an_older_model_is_converted_to_the_operator_set_that_has_the_codes(bits, opset, element, tmp_path):
    model = conv_net(opset=17)
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=bits, group_size=16), tmp_path)
    assert result.opset_import[0].version == opset
    held = {tensor.name: tensor for tensor in result.graph.initializer}
    assert held["first_quantized"].data_type == TensorProto.DataType.Value(element)
    given = inputs(model)
    assert sqnr(outputs(dequantized(model, result), **given), outputs(result, **given)) > 80


def test_products_and_embeddings_leave_the_operator_set_alone(tmp_path):
    result, _ = apply(tied(opset=17), QuantizeWeightOnly(weight_bits=2), tmp_path)
    assert {entry.domain: entry.version for entry in result.opset_import} == {"": 17, "com.microsoft": 1}


def test_what_cannot_be_converted_is_held_in_wider_codes_or_left(tmp_path, monkeypatch):
    from compression.quantization import prepare

    real = prepare.at_least_opset

    def up_to_21(model, version):
        if version > 21:
            raise StepFailed("unsupported_by_runtime", "no")
        return real(model, version)

    monkeypatch.setattr(prepare, "at_least_opset", up_to_21)
    result, details = apply(cnn(), QuantizeWeightOnly(weight_bits=2), tmp_path)
    assert [entry["stored_bits"] for entry in details["weights"]] == [4, 4, 2]
    assert result.opset_import[0].version == 21

    def never(model, version):
        if version > 17:
            raise StepFailed("unsupported_by_runtime", "no")
        return model

    monkeypatch.setattr(prepare, "at_least_opset", never)
    model = cnn()
    model.opset_import[0].version = 17
    _, details = apply(model, QuantizeWeightOnly(weight_bits=2), tmp_path)
    assert ["operator set 21" in entry.get("skipped", "") for entry in details["weights"]] == [True, True, False]


def test_a_runtime_that_reads_fewer_widths_gets_wider_codes(tmp_path, monkeypatch):
    monkeypatch.setattr(capabilities, "_runs", lambda form, stored: stored == 8)
    _, details = apply(cnn(), QuantizeWeightOnly(weight_bits=2), tmp_path)
    assert [entry["stored_bits"] for entry in details["weights"]] == [8, 8, 8]
    monkeypatch.setattr(capabilities, "_runs", lambda form, stored: stored == 2)
    with pytest.raises(StepFailed, match=r"no DequantizeLinear that reads 3 bits; it reads 2") as error:
        apply(cnn(), QuantizeWeightOnly(weight_bits=3), tmp_path)
    assert error.value.code == "no_weights"


def test_products_in_8_bits_are_45_db_above_their_noise(tmp_path):
    model = mlp()
    given = inputs(model)
    for bits in (4, 8):
        result, _ = apply(model, QuantizeWeightOnly(weight_bits=bits), tmp_path)
        assert 35 < sqnr(outputs(dequantized(model, result), **given), outputs(result, **given)) < 70
        assert all(a.i == 4 for n in result.graph.node for a in n.attribute if a.name == "accuracy_level")


def test_hqq_and_gptq_err_less_than_rounding_to_nearest(tmp_path):
    """On the digits at 2 bits: HQQ by the weights, GPTQ by the outputs of the whole network."""
    model = digits_model()
    images = np.load("examples/digits/evaluation.npz")["image"]
    noise, errors = {}, {}
    for method in ("rtn", "hqq", "gptq"):
        spec = QuantizeWeightOnly(weight_bits=2, method=method, symmetric=False)
        result, details = apply(model, spec, tmp_path, digits_calibration())
        assert {entry["method"] for entry in details["weights"]} == {method}
        errors[method] = np.array([entry["mean_squared_error"] for entry in details["weights"]])
        noise[method] = sqnr(outputs(model, image=images), outputs(result, image=images))
    assert np.all(errors["hqq"] < 0.85 * errors["rtn"])
    assert noise["gptq"] > noise["rtn"] + 3


@pytest.mark.parametrize("kind", MODELS)
def test_gptq_says_which_weights_it_could_not_measure(kind, tmp_path):
    model = MODELS[kind]()
    rng = np.random.default_rng(2)
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    samples = {
        # Neighbours are alike, as in pictures and sounds: without that there is nothing to make errors up with.
        "x": np.cumsum(rng.standard_normal((32, *shape[1:])), axis=-1).astype(np.float32),
        "ids": rng.integers(0, 50, (32, 5)),
    }
    name = model.graph.input[0].name
    if kind in ("lstm", "stack"):
        spec = QuantizeWeightOnly(method="gptq", group_size=16)
        _, details = apply(model, spec, tmp_path, dataset(tmp_path, x=samples["x"][:5]))
        assert {entry["method"] for entry in details["weights"]} == {"rtn"}
        return
    spec = QuantizeWeightOnly(method="gptq", group_size=16, int8_products=False)
    result, details = apply(model, spec, tmp_path, dataset(tmp_path, **{name: samples[name]}))
    methods = {entry["name"]: entry["method"] for entry in details["weights"]}
    rounded = {name for name, method in methods.items() if method == "rtn"}
    assert rounded == {"embedding": {"table"}}.get(kind, {"up"} if "up" in methods else set())
    nearest, _ = apply(model, QuantizeWeightOnly(group_size=16, int8_products=False), tmp_path)
    given = {name: samples[name]}
    expected = outputs(model, **given)
    assert sqnr(expected, outputs(result, **given)) > sqnr(expected, outputs(nearest, **given))
    for entry in details["weights"]:
        assert entry["method"] == "rtn" or entry["output_sqnr"] > 15


def test_gptq_needs_data(tmp_path):
    with pytest.raises(DataRejected, match="'rtn' or 'hqq'") as error:
        apply(mlp(), QuantizeWeightOnly(method="gptq"), tmp_path)
    assert error.value.code == "calibration_data_missing"


def test_gptq_refuses_samples_on_which_the_model_overflows(tmp_path):
    x = np.full((8, 64), 3e38, np.float32)
    with pytest.raises(DataRejected, match="'x'") as error:
        apply(mlp(), QuantizeWeightOnly(method="gptq"), tmp_path, dataset(tmp_path, x=x))
    assert error.value.code == "non_finite_values"


def test_the_factor_of_a_gemm_is_in_the_codes(tmp_path):
    rng = np.random.default_rng(0)
    model = make_model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", alpha=0.5, beta=2.0)],
        [value("x", ["n", 40])],
        [value("y", ["n", 7])],
        {"w": weight(rng, 40, 7), "b": weight(rng, 7)},
    )
    x = rng.standard_normal((8, 40)).astype(np.float32)
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=8), tmp_path)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 35


def test_a_weight_that_codes_would_make_larger_stays(tmp_path):
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "thin"), helper.make_node("MatMul", ["h", "v"], ["y"], "wide")],
        [value("x", ["n", 1])],
        [value("y", ["n", 9])],
        {"w": np.ones((1, 32), np.float32), "v": np.ones((32, 9), np.float32)},
    )
    _, details = apply(model, QuantizeWeightOnly(weight_bits=8), tmp_path)
    assert details["weights"][0]["skipped"] == "codes and scales would take 1152 bytes, and it has 128"
    assert details["weights"][1]["form"] == "MatMulNBits"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad, tmp_path):
    model = mlp()
    values = stored(model)["w2"].copy()
    values[3, 3] = bad
    model.graph.initializer[2].raw_data = values.tobytes()
    with pytest.raises(StepFailed, match="'w2' holds NaN or infinity") as error:
        apply(model, QuantizeWeightOnly(), tmp_path)
    assert error.value.code == "non_finite_weights"


def test_an_already_quantized_model_is_refused(tmp_path):
    result, _ = apply(cnn(), QuantizeWeightOnly(), tmp_path)
    with pytest.raises(StepFailed, match="is quantized already") as error:
        apply(result, QuantizeWeightOnly(), tmp_path)
    assert error.value.code == "already_quantized"


def test_half_precision_weights(tmp_path):
    model = mlp(dtype=np.float16)
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=8), tmp_path)
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float16)
    assert stored(result)["w1_scale"].dtype == np.float16
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 35


def test_4_bits_take_an_eighth_and_the_scales(tmp_path):
    result, _ = apply(mlp(), QuantizeWeightOnly(weight_bits=4, group_size=32), tmp_path)
    parts = stored(result)
    assert parts["w1_quantized"].nbytes == 64 * 128 // 2
    assert parts["w1_scale"].shape == (128, 2)
    assert "w1" not in parts


@pytest.mark.parametrize("bits", [4, 8])
def test_digits_stay_within_a_point_of_float(bits, tmp_path):
    model = digits_model()
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=bits), tmp_path)
    assert digits_accuracy(result) > digits_accuracy(model) - 0.01


def test_an_excluded_matrix_stays_float(tmp_path):
    model = mlp()
    result, details = apply(model, QuantizeWeightOnly(exclude=("matmul2",)), tmp_path)
    np.testing.assert_array_equal(stored(result)["w2"], stored(model)["w2"])
    assert [entry["name"] for entry in details["weights"]] == ["w1"]


def test_a_weight_in_several_products(tmp_path):
    rng = np.random.default_rng(0)
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("MatMul", ["h", "w"], ["y"], "second"),
        ],
        [value("x", ["n", 32])],
        [value("y", ["n", 32])],
        {"w": weight(rng, 32, 32)},
    )
    result, _ = apply(model, QuantizeWeightOnly(weight_bits=8), tmp_path)
    assert [node.input[1] for node in result.graph.node] == ["w_quantized", "w_quantized"]
    x = rng.standard_normal((8, 32)).astype(np.float32)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 35


def test_a_weight_that_is_an_output_stays(tmp_path):
    model = mlp()
    model.graph.output.append(value("w1", [64, 128]))
    result, details = apply(model, QuantizeWeightOnly(), tmp_path)
    assert details["weights"][0]["skipped"] == "it is an output of the model"
    np.testing.assert_array_equal(stored(result)["w1"], stored(model)["w1"])
