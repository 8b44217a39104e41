"""What a Twin promises: names, parameters, refusals, freeing, constants computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from mixq.errors import InputError
from mixq.twin import Twin, unsupported_ops
from mixq.twin.ops import OPS
from mixq.twin.step import Step, freeing

from .oracle import node_model, normal, run_twin


def parse(body: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {body}'))


def perceptron() -> ir.Model:
    return parse(
        """mlp (float[batch, 2] x) => (float[batch, 1] y)
        <float[2, 2] fc1_weight = {1, 2, 3, 4}, float[2] fc1_bias = {0.5, -20}, float[2, 1] fc2_weight = {1, -1},
         int64[1] axes = {0}>
        {
            h = MatMul (x, fc1_weight)
            b = Add (h, fc1_bias)
            r = Relu (b)
            y = MatMul (r, fc2_weight)
        }"""
    )


def test_runs_at_any_batch_size() -> None:
    twin = Twin(perceptron())
    for batch in (1, 3):
        x = normal(batch, 2)
        hidden = np.maximum(x @ np.array([[1, 2], [3, 4]], np.float32) + np.array([0.5, -20], np.float32), 0)
        np.testing.assert_allclose(run_twin(twin, {"x": x})["y"], hidden @ np.array([[1], [-1]], np.float32), rtol=1e-5)


def test_trainable_initializers_are_parameters_and_nothing_else_is() -> None:
    twin = Twin(perceptron(), trainable=["fc2_weight", "fc1_bias"])
    assert [list(parameter.shape) for parameter in twin.parameters()] == [[2, 1], [2]]
    assert list(twin.trainable_parameters()) == ["fc2_weight", "fc1_bias"]
    assert len(twin.state_dict()) == 2
    assert not any(buffer.requires_grad for buffer in twin.buffers())


def test_training_changes_the_parameters_and_not_the_model() -> None:
    model = perceptron()
    twin = Twin(model, trainable=["fc1_weight"])
    before = twin.parameter_values()
    twin({"x": torch.ones(1, 2)})["y"].sum().backward()
    torch.optim.SGD(twin.parameters(), lr=1.0).step()
    after = twin.parameter_values()
    np.testing.assert_array_equal(before["fc1_weight"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(after["fc1_weight"], [[0, 2], [2, 4]])  # the second hidden unit is off
    assert after["fc1_weight"].dtype == np.float32
    content = model.graph.initializers["fc1_weight"].const_value
    assert content is not None
    np.testing.assert_array_equal(content.numpy(), [[1, 2], [3, 4]])


@pytest.mark.parametrize("name", ["fc3_weight", "axes", "h"])
def test_refuses_what_cannot_be_trained(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}'.*known: \['fc1_bias', 'fc1_weight', 'fc2_weight'\]"):
        Twin(perceptron(), trainable=["fc1_bias", name])


def test_refuses_unknown_ops_by_name_and_node() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Hardmax (x)  [mine] y = Unique (a) }")
    assert unsupported_ops(model) == [("a", "Hardmax"), ("mine", "Unique")]
    with pytest.raises(InputError, match=r"Hardmax \(node 'a'\), Unique \(node 'mine'\).*add them to the table"):
        Twin(model)


def test_refuses_other_domains() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "com.me" : 1]> g (float[2] x) => (float[2] y) {y = com.me.Relu (x)}'
    )
    assert unsupported_ops(ir.from_proto(onnx.parser.parse_model(text))) == [("y", "com.me::Relu")]


def test_refuses_ops_that_meant_something_else() -> None:
    model = ir.from_proto(node_model("Softmax", 11, {"x": normal(2, 3)}))
    assert unsupported_ops(model) == [("y0", "Softmax-11")]
    with pytest.raises(InputError, match="convert the model to opset 13"):
        Twin(model)


def test_refuses_missing_and_unknown_inputs() -> None:
    with pytest.raises(InputError, match=r"inputs \['z'\] do not fit the graph: give exactly \['x'\]"):
        Twin(perceptron())({"z": torch.ones(1, 2)})


def test_refuses_strings_and_nodes_out_of_order() -> None:
    with pytest.raises(InputError, match="STRING"):
        Twin(parse('g (float[2] x) => (float[2] y) <string[1] s = {"a"}> {y = Relu (x)}'))
    with pytest.raises(InputError, match=r"'y' reads \['a'\] too early"):
        Twin(parse("g (float[2] x) => (float[2] y) {y = Relu (a) a = Relu (x)}"))


def test_an_error_of_torch_says_in_which_node() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        Twin(perceptron())({"x": torch.ones(4, 3)})
    assert caught.value.__notes__ == [
        "in node 'h' (MatMul), inputs x (4, 3) torch.float32, fc1_weight (2, 2) torch.float32"
    ]


def test_16_bit_floats_come_in_as_float32() -> None:
    model = ir.from_proto(node_model("Add", 21, {"x": normal(3).astype(np.float16), "w": normal(3).astype(np.float16)}))
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(normal(3).astype(np.float16), name="w")
    model.graph.initializers["w"] = weight
    twin = Twin(model, trainable=["w"])
    y = twin({"x": torch.ones(3, dtype=torch.float16)})["y0"]
    assert y.dtype == next(twin.parameters()).dtype == torch.float32
    np.testing.assert_array_equal(twin.parameter_values()["w"], normal(3).astype(np.float16).astype(np.float32))


def test_what_depends_on_constants_alone_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(attributes: Any, inputs: Any) -> Any:
        calls.append(attributes)
        return dequantize(attributes, inputs)

    dequantize: Callable[..., Any] = OPS["DequantizeLinear"]
    monkeypatch.setitem(OPS, "DequantizeLinear", counted)
    twin = Twin(
        parse(
            """g (float[2] x) => (float[2] y) <int8[2] q = {1, -2}, float s = {0.5}>
            { w = DequantizeLinear (q, s)  y = Mul (x, w) }"""
        )
    )
    for _ in range(2):
        assert twin({"x": torch.ones(2)})["y"].tolist() == [0.5, -1]
    assert len(calls) == 1
    assert len(list(twin.buffers())) == 1


def test_inputs_and_initializers_may_be_outputs() -> None:
    model = parse(
        "g (float[1] x) => (float[1] y, float[1] x, float[1] w) <float[1] w = {2}> { y = Mul (x, w) unused = Neg (y) }"
    )
    outputs = Twin(model)({"x": torch.tensor([3.0])})
    assert {name: tensor.item() for name, tensor in outputs.items()} == {"y": 6, "x": 3, "w": 2}


def test_values_are_freed_after_their_last_use() -> None:
    def step(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Step:
        return Step("n", "Test", lambda tensors: tuple(torch.zeros(1) for _ in outputs), inputs, outputs)

    steps = freeing([step(("x", ""), ("a", "unused")), step(("a", "a"), ("b",)), step(("b", "a"), ("y",))], {"x", "y"})
    assert [step.last_uses for step in steps] == [("unused",), (), ("b", "a")]
    values = {"x": torch.zeros(1)}
    for each in steps:
        each.run(values)
    assert values.keys() == {"x", "y"}
