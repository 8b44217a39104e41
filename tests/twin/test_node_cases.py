"""Every op of the table against ONNX's own test data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mixq.errors import InputError
from mixq.twin import Twin
from mixq.twin.ops import OPS

from .node_cases import HALF, WITHOUT_CASE, Arrays, NodeCase, node_cases, refusals


def run(case: NodeCase, inputs: Arrays) -> dict[str, torch.Tensor]:
    names = [value.name or "" for value in case.model.graph.inputs]
    return Twin(case.model).forward(dict(zip(names, map(stored, inputs), strict=True)))


def stored(array: npt.NDArray[Any]) -> torch.Tensor:
    """As a Twin stores it: 16-bit floats in float32."""
    return torch.from_numpy(np.array(array, np.float32 if array.dtype in HALF else array.dtype))


@pytest.mark.parametrize("name", sorted(node_cases().keys() - refusals().keys()))
def test_agrees_with_onnx(name: str) -> None:
    case = node_cases()[name]
    codes = {node.outputs[0].name for node in case.model.graph if node.op_type == "QuantizeLinear"}
    for inputs, expected in case.data:
        for (output, tensor), array in zip(run(case, inputs).items(), expected, strict=True):
            wanted = stored(array)
            assert tensor.shape == wanted.shape
            assert tensor.dtype == (torch.float32 if output in codes else wanted.dtype)
            np.testing.assert_allclose(tensor, wanted, rtol=case.tolerance, atol=case.tolerance)


@pytest.mark.parametrize(("name", "words"), sorted(refusals().items()))
def test_refuses_with_a_reason(name: str, words: str) -> None:
    case = node_cases()[name]
    with pytest.raises((InputError, IndexError), match=words):
        run(case, case.data[0][0])


def test_every_op_of_the_table_has_a_case() -> None:
    names = node_cases().keys() - refusals().keys()
    tested = {node.op_type for name in names for node in node_cases()[name].model.graph}
    assert OPS.keys() - tested == WITHOUT_CASE
