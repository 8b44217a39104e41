"""What OpenVINO alone does: integer transposed convolutions, which take no zero point."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch

from mixq.config import LayerScheme, Precision
from mixq.graph import Graph, capture, serialize
from mixq.graph.capture import relative_error
from mixq.runtimes import get_runtime
from mixq.runtimes.openvino_audit import read_audit
from tests.helpers import Lowered, Net, images, lowered, ort_run, reference_run, schemes
from tests.support.cases import WORDS, Attention

INT8 = LayerScheme(precision=Precision.INT8)
OPENVINO = get_runtime("openvino")
EXAMPLE = images(8, 8)


def transposed(*, relu: bool = False, groups: int = 1, **attributes: Any) -> Graph:
    """A transposed convolution of 8 channels in `groups` groups, of the input or of its positive part."""
    net = Net(8, 8, 8)
    data = net.op("Relu", "x") if relu else "x"
    weight, bias = net.weight("up.weight", 8, 8 // groups, 3, 3), net.weight("up.bias", 8)
    net.op("ConvTranspose", data, weight, bias, name="up", group=groups, **attributes)
    return net.graph("up", example=EXAMPLE, ranks=[4])


@pytest.mark.parametrize("other", ["int8", "fp32"])
@pytest.mark.parametrize("layers", [("query",), ("value",), ("query", "key", "value"), ("query", "node_matmul")])
def test_attention_in_bf16_beside_layers_of_other_types_compiles(layers: tuple[str, ...], other: str) -> None:
    """OpenVINO fuses a cast with arithmetic with a constant behind it, and may find no types for attention then."""
    if reason := OPENVINO.float_refusal(Precision.BF16):
        pytest.skip(reason)
    torch.manual_seed(0)
    rows = {"ids": np.random.default_rng(0).integers(0, WORDS, (2, 12))}
    graph = capture(Attention().eval(), rows, ort_run, {"ids": (1,)})
    floats = dict.fromkeys(("embedding", "node_matmul", "node_matmul_1"), "fp32")
    config = schemes(graph, other, **{**floats, **dict.fromkeys(layers, "bf16")})
    (have,) = lowered(graph, config, OPENVINO, rows).executable.run(rows).values()
    (want,) = ort_run(serialize(graph.model))(rows).values()
    assert relative_error(want, have) < 0.05


def int8(graph: Graph) -> Lowered:
    return lowered(graph, schemes(graph, "int8"), OPENVINO, EXAMPLE)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("strides", [[1, 1], [2, 2], [3, 3]])
def test_a_transposed_convolution_runs_in_int8_also_on_negative_values(relu: bool, strides: list[int]) -> None:
    graph = transposed(relu=relu, strides=strides)
    assert OPENVINO.refusal(INT8, graph.layers[0]) is None
    model = int8(graph)
    assert model.executed(EXAMPLE) == {"up": "int8"}
    (want,), (have,), (as_written,) = (
        run(EXAMPLE).values()
        for run in (reference_run(serialize(graph.model)), model.executable.run, reference_run(model.model))
    )
    assert relative_error(as_written, have) < 1e-5
    assert relative_error(want, have) < 0.05
    zero_point = {x.name: onnx.numpy_helper.to_array(x) for x in model.proto.graph.initializer}[
        f"{'relu0' if relu else 'x'}_zero_point"
    ]
    assert zero_point == 0
    assert zero_point.dtype == (np.uint8 if relu else np.int8)


@pytest.mark.parametrize(
    ("groups", "strides", "reason"),
    [(1, [1, 4], "stride"), (1, [4, 4], "stride"), (1, [4, 1], "stride"), (2, [1, 1], "groups"), (8, [2, 2], "groups")],
    ids=str,
)
@pytest.mark.parametrize("relu", [False, True])
def test_what_would_run_float_all_the_same_is_refused(groups: int, strides: list[int], reason: str, relu: bool) -> None:
    """And the audit sees it, though the executed node's own note says u8."""
    graph = transposed(relu=relu, groups=groups, strides=strides)
    assert reason in str(OPENVINO.refusal(INT8, graph.layers[0]))
    assert int8(graph).executed(EXAMPLE)["up"] in ("fp32", "unknown")


def test_a_kernel_too_short_for_its_counter_has_a_time_all_the_same() -> None:
    """OpenVINO says of one below a microsecond what it says of all where no counter ran: not executed."""
    found = int8(transposed())
    compiled = openvino.Core().compile_model(openvino.Core().read_model(found.model), "CPU")
    nodes = compiled.get_runtime_model().get_ordered_ops()
    for timed, want in ((True, 0.0), (False, None)):
        (kernel,) = read_audit(nodes, found.graph.layers, found.model, 0, timed=timed).kernels
        assert (kernel.layer, kernel.time_us) == ("up", want)
