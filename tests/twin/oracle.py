"""What the tests of the twin share: numpy to torch and back, and the ONNX reference evaluator beside a Twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator

from mixq.twin import Twin

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_twin(twin: Twin, inputs: Mapping[str, Array]) -> dict[str, Array]:
    outputs = twin({name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    return {name: tensor.detach().numpy() for name, tensor in outputs.items()}


def assert_like_reference(model: onnx.ModelProto, inputs: Mapping[str, Array], atol: float = 1e-5) -> None:
    """The Twin's outputs have the reference evaluator's shapes, types (integer codes as float32) and values."""
    evaluator = ReferenceEvaluator(model)
    expected = dict(zip(evaluator.output_names, evaluator.run(None, dict(inputs)), strict=True))
    actual = run_twin(Twin(ir.from_proto(model)), inputs)
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        assert array.shape == expected[name].shape
        np.testing.assert_allclose(array, np.asarray(expected[name], array.dtype), rtol=1e-5, atol=atol)


def node_model(
    op_type: str, opset: int, inputs: Mapping[str, Array], outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """A model of one node, outputs y0, y1, …; an input of the name "" is one that is left out."""
    names = [f"y{index}" for index in range(outputs)]
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items() if name}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op_type, list(inputs), names, **attributes)],
        "node",
        [onnx.helper.make_tensor_value_info(name, kind, inputs[name].shape) for name, kind in types.items()],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def run_node(op_type: str, inputs: Mapping[str, Array], opset: int = 21, **attributes: Any) -> Array:
    """The first output of a Twin of one node."""
    twin = Twin(ir.from_proto(node_model(op_type, opset, inputs, **attributes)))
    return run_twin(twin, inputs)["y0"]
