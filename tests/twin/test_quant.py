"""QuantizeLinear and DequantizeLinear: codes as mixq.affine's, values as ONNX's, gradients as torch's fake-quantize."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from mixq import affine
from mixq.twin import Twin

from .oracle import Array, assert_like_reference, node_model, normal, run_node


def qdq(scale: Array, zero_point: Array, shape: tuple[int, ...], **attributes: Any) -> Twin:
    """x → QuantizeLinear → DequantizeLinear → y, the scale trainable."""
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **attributes),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **attributes),
    ]
    return Twin(ir.from_proto(model_of(nodes, shape, {"scale": scale, "zero_point": zero_point})), ["scale"])


def model_of(nodes: list[onnx.NodeProto], shape: tuple[int, ...], initializers: dict[str, Array]) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        nodes,
        "qdq",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def gradients(twin: Twin, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y and the gradients of sum(weight · y) for x and for the scale."""
    x = x.detach().requires_grad_()
    y = twin({"x": x})["y"]
    to_x, to_scale = torch.autograd.grad(y, [x, twin.trainable_parameters()["scale"]], weight)
    return y.detach(), to_x, to_scale


@pytest.mark.parametrize(("dtype", "limits"), [(np.uint8, (0, 255)), (np.int8, (-128, 127)), (np.int32, affine.S32)])
def test_codes_are_affines_in_float32(dtype: type[np.generic], limits: tuple[int, int]) -> None:
    x, scale, zero_point = 40 * normal(500), np.array(0.13, np.float32), np.array(3, dtype)
    codes = run_node("QuantizeLinear", {"x": x, "s": scale, "z": zero_point})
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, affine.codes(x, scale, zero_point.astype(np.float32), limits))


def test_type_comes_from_output_dtype_where_there_is_no_zero_point() -> None:
    inputs = {"x": np.array([-1000, 1000], np.float32), "s": np.array(1, np.float32)}
    assert run_node("QuantizeLinear", inputs, output_dtype=onnx.TensorProto.INT8).tolist() == [-128, 127]
    assert run_node("QuantizeLinear", inputs).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_dequantizes_integers_of_every_type(dtype: type[np.integer[Any]]) -> None:
    info = np.iinfo(dtype)
    q = np.array([[info.min, 0, 5, info.max]], dtype).repeat(3, 0)
    zero_point = np.zeros(3, dtype) if dtype is np.int32 else np.array([info.min, 3, info.max], dtype)
    inputs = {"q": q, "s": np.array([0.5, 0.01, 3], np.float32), "z": zero_point}
    assert_like_reference(node_model("DequantizeLinear", 21, inputs, axis=0), inputs)


def test_per_tensor_gradient_is_that_of_torchs_fake_quantize() -> None:
    x = torch.linspace(-3, 3, 601, requires_grad=True)
    weight = torch.from_numpy(normal(601))
    y, to_x, _ = gradients(qdq(np.array(0.013, np.float32), np.array(77, np.uint8), (601,)), x, weight)
    expected = torch.fake_quantize_per_tensor_affine(x, float(np.float32(0.013)), 77, 0, 255)
    torch.testing.assert_close(y, expected.detach())
    torch.testing.assert_close(to_x, torch.autograd.grad(expected, x, weight)[0])
    assert (to_x == 0).any()
    assert (to_x != 0).any()


def test_per_axis_gradient_is_that_of_torchs_fake_quantize() -> None:
    scale = np.array([0.01, 0.02, 0.005, 0.04], np.float32)
    x = torch.from_numpy(normal(3, 4, 50)).requires_grad_()
    weight = torch.from_numpy(normal(3, 4, 50, seed=1))
    y, to_x, _ = gradients(qdq(scale, np.zeros(4, np.int8), (3, 4, 50), axis=-2), x, weight)
    zero_point = torch.zeros(4, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, torch.from_numpy(scale), zero_point, 1, -128, 127)
    torch.testing.assert_close(y, expected.detach())
    torch.testing.assert_close(to_x, torch.autograd.grad(expected, x, weight)[0])


def test_gradient_on_the_limits_passes_and_beyond_does_not() -> None:
    x = torch.tensor([-1.6, -1.4, -1.0, 0.2, 253.0, 254.4, 254.6])
    _, to_x, _ = gradients(qdq(np.array(1, np.float32), np.array(1, np.uint8), (7,)), x, torch.ones(7))
    assert to_x.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_scale_gradient_is_that_of_learned_step_sizes() -> None:
    # Esser et al. 2020, equation 3: round(x / s) − x / s inside the range, the limit outside.
    x, weight = torch.from_numpy(3 * normal(200)), torch.from_numpy(normal(200, seed=1))
    _, _, to_scale = gradients(qdq(np.array(0.02, np.float32), np.array(0, np.int8), (200,)), x, weight)
    ratio = x.double() / float(np.float32(0.02))
    limited = ratio.round().clamp(-128, 127)
    step = torch.where(ratio.round() == limited, limited - ratio, limited)
    torch.testing.assert_close(to_scale, (weight * step).sum().float(), rtol=1e-4, atol=1e-3)


def test_quantized_convolution_agrees_with_the_reference_evaluator() -> None:
    rng = np.random.default_rng(0)
    initializers: dict[str, Array] = {
        "x_scale": np.array(0.03, np.float32),
        "x_zero": np.array(110, np.uint8),
        "w": rng.integers(-127, 128, (6, 4, 3, 3), np.int8),
        "w_scale": rng.uniform(0.001, 0.01, 6).astype(np.float32),
        "w_zero": np.zeros(6, np.int8),
        "b": rng.integers(-3000, 3000, 6, np.int32),
        "b_zero": np.zeros(6, np.int32),
        "y_scale": np.array(0.07, np.float32),
        "y_zero": np.array(0, np.uint8),
    }
    initializers["b_scale"] = initializers["x_scale"] * initializers["w_scale"]
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        make("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        make("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=0),
        make("DequantizeLinear", ["b", "b_scale", "b_zero"], ["bd"], axis=0),
        make("Conv", ["xd", "wd", "bd"], ["c"], pads=[1, 1, 1, 1]),
        make("Relu", ["c"], ["r"]),
        make("QuantizeLinear", ["r", "y_scale", "y_zero"], ["yq"]),
        make("MaxPool", ["yq"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        make("DequantizeLinear", ["p", "y_scale", "y_zero"], ["y"]),
    ]
    model = model_of(nodes, (2, 4, 8, 8), initializers)
    assert_like_reference(model, {"x": 2 * normal(2, 4, 8, 8)})


def test_a_pair_is_one_step_and_can_be_skipped() -> None:
    twin = Twin(ir.from_proto(layer_between_pairs()), ["x_scale"])
    assert twin.pairs == {"x_dequantize", "y_dequantize"}
    x = torch.from_numpy(normal(2, 4))
    whole, free = twin({"x": x})["out"], twin({"x": x}, twin.pairs)["out"]
    assert not torch.equal(whole, free)
    torch.testing.assert_close(free, 2 * x)
    torch.testing.assert_close(twin({"x": x}, {"y_dequantize"})["out"], 2 * (torch.round(x / 0.1) * 0.1))


def test_codes_that_something_else_reads_stay_two_steps() -> None:
    twin = Twin(ir.from_proto(layer_between_pairs(codes_out=True)))
    assert twin.pairs == {"x_dequantize"}
    assert set(twin({"x": torch.from_numpy(normal(2, 4))})) == {"out", "y_codes"}


def test_tied_scales_are_one_parameter() -> None:
    twin = Twin(ir.from_proto(layer_between_pairs()), ["x_scale"], {"y_scale": "x_scale"})
    x = torch.from_numpy(normal(2, 4))
    expected = torch.round(2 * torch.round(x / 0.1) * 0.1 / 0.1) * 0.1
    torch.testing.assert_close(twin({"x": x})["out"], expected)
    assert list(twin.trainable_parameters()) == ["x_scale"]


def layer_between_pairs(codes_out: bool = False) -> onnx.ModelProto:
    """x → pair → + itself → pair → out; with `codes_out` the second pair's codes are an output too."""

    def pair(name: str, source: str, target: str) -> list[onnx.NodeProto]:
        parts = [f"{name}_scale", f"{name}_zero"]
        return [
            onnx.helper.make_node("QuantizeLinear", [source, *parts], [f"{name}_codes"], name=f"{name}_quantize"),
            onnx.helper.make_node("DequantizeLinear", [f"{name}_codes", *parts], [target], name=f"{name}_dequantize"),
        ]

    nodes = [*pair("x", "x", "a"), onnx.helper.make_node("Add", ["a", "a"], ["b"], name="add"), *pair("y", "b", "out")]
    known: dict[str, Array] = {"x_zero": np.array(0, np.int8), "y_zero": np.array(0, np.int8)}
    known |= {"x_scale": np.array(0.1, np.float32), "y_scale": np.array(0.3, np.float32)}
    outputs = [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)]
    if codes_out:
        outputs.append(onnx.helper.make_tensor_value_info("y_codes", onnx.TensorProto.INT8, None))
    graph = onnx.helper.make_graph(
        nodes,
        "pairs",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 4))],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in known.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
