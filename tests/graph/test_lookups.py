"""A lookup of the same row everywhere is that row; any other stays a lookup."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mixq.graph import Graph, serialize
from mixq.graph.lookups import replace_constant_lookups
from mixq.runtimes import NAMES, get_runtime
from tests.helpers import Net, images, reference_run

EXAMPLE = {"x": images(2, 4)["x"][:, :, 0, 0]}  # (2, 4)


def kinds(table: list[list[float]], kind: list[int], index: str = "spread") -> Net:
    """y = layer(x + table[kinds]), where `kinds` holds a number for each row of x: `kind`, spread to as many."""
    net = Net(4)
    net.constant("table", np.array(table, np.float32))
    net.constant("kind", np.array(kind, np.int64))
    net.op("Shape", "x", name="rows", start=0, end=1)
    net.op("Expand", "kind", "rows", name="spread")
    net.op("Identity", "spread", name="passed")
    net.op("Gather", "table", index, name="found")
    net.op("Add", "x", "found", name="sum")
    net.gemm("sum", 4, 3, "y")
    return net


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize(("kind", "index"), [([1], "spread"), ([-2], "passed")])
def test_one_row_everywhere_is_looked_up_nowhere(runtime: str, kind: list[int], index: str) -> None:
    net = kinds([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], kind, index)
    graph = net.graph("y", example=EXAMPLE)
    assert "Gather" not in ops(graph)
    for rows in (2, 5):
        inputs = {"x": np.resize(EXAMPLE["x"], (rows, 4))}
        got = get_runtime(runtime).compile(serialize(graph.model), 1).run(inputs)["y"]
        want = reference_run(net.model("y").SerializeToString())(inputs)["y"]
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kind", [[0, 1], [7]], ids=["rows that differ", "beyond the table"])
def test_other_lookups_are_left_to_the_runtime(kind: list[int]) -> None:
    model = ir.from_proto(kinds([[1, 2, 3, 4], [5, 6, 7, 8]], kind).model("y"))
    replace_constant_lookups(model)
    assert "Gather" in [node.op_type for node in model.graph]
