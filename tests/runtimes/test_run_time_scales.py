"""Which layers OpenVINO quantizes at run time: what the audit says, against the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from mixq.config import LayerScheme
from mixq.graph import Graph
from mixq.runtimes import get_runtime
from mixq.runtimes.openvino import GROUP, GROUP_SIZE, HINT
from mixq.runtimes.probes import scales_at_run_time
from mixq.task import Array
from tests.helpers import Net, calibrated, lowered, schemes

OPENVINO = get_runtime("openvino")
ABLE = scales_at_run_time(type(OPENVINO))


def matrix(inputs: int) -> tuple[Graph, dict[str, Array]]:
    """One layer whose input has a few values much larger than the others."""
    rng = np.random.default_rng(inputs)
    x = rng.standard_normal((1, 40, inputs)).astype(np.float32)
    x[..., ::17] *= 8
    net = Net(40, inputs)
    graph = net.graph(net.op("MatMul", "x", net.weight("w", inputs, 48), name="m"), example={"x": x}, ranks=[3])
    return graph, {"x": x}


def grouped(x: Array, group: int) -> Array:
    """Rounded to s8, each `group` values by their largest magnitude, what is left over by its own."""
    parts: list[Array] = np.split(x.astype(np.float64), range(group, x.shape[-1], group), axis=-1)
    scales = [np.abs(part).max(-1, keepdims=True) / 127 for part in parts]
    return np.concatenate([np.rint(part / scale) * scale for part, scale in zip(parts, scales, strict=True)], axis=-1)


def distance(have: Array, want: Array) -> float:
    return float(np.sqrt(np.square(have - want).mean() / np.square(want).mean()))


@pytest.mark.parametrize("group", [0, 32, 64, GROUP_SIZE, 256])
@pytest.mark.parametrize("inputs", [16, 96, 100, 128, 192, 256, 384])
def test_the_audit_says_int8_exactly_where_the_numbers_are_rounded(inputs: int, group: int) -> None:
    graph, rows = matrix(inputs)
    model = lowered(graph, schemes(graph, "int8-weight_only"), OPENVINO, rows).model
    executable = OPENVINO.compile(model, 1, {HINT: "f32", GROUP: str(group)})
    (have,) = executable.run(rows).values()
    (kernel,) = executable.audit(graph.layers, rows).kernels
    weight = calibrated(graph, OPENVINO, rows).rounded("m").astype(np.float64)
    exact = rows["x"].astype(np.float64) @ weight
    assert kernel.executed == ("fp32" if distance(have, exact) < 1e-5 else "int8")
    if kernel.executed == "int8":
        want = grouped(rows["x"], group) @ weight
        assert distance(have, want) < 0.02 * distance(have, exact)


def test_layers_of_fewer_inputs_than_a_group_are_refused() -> None:
    dynamic = LayerScheme.parse("int8-dynamic")
    for inputs, refused in ((96, True), (127, True), (128, False), (192, False)):
        (layer,) = matrix(inputs)[0].layers
        reason = OPENVINO.refusal(dynamic, layer)
        assert bool(reason) == (refused or not ABLE)
        assert reason is None or ("by 128 values" if refused else "VNNI") in reason


def test_dynamic_and_weight_only_run_as_they_say() -> None:
    """Where this CPU cannot, a dynamic layer is refused; asked for nevertheless, it is weight-only."""
    graph, rows = matrix(256)
    found = {}
    for scheme in ("fp32", "int8-weight_only", "int8-dynamic"):
        executable = lowered(graph, schemes(graph, scheme), OPENVINO, rows).executable
        (outputs,) = executable.run(rows).values()
        (kernel,) = executable.audit(graph.layers, rows).kernels
        found[scheme] = outputs, kernel.executed
    assert {scheme: executed for scheme, (_, executed) in found.items()} == {
        "fp32": "fp32",
        "int8-weight_only": "fp32",
        "int8-dynamic": "int8" if ABLE else "fp32",
    }
    codes, dynamic = (distance(found[f"int8-{kind}"][0], found["fp32"][0]) for kind in ("weight_only", "dynamic"))
    assert 1e-4 < codes < dynamic < 0.05 if ABLE else 1e-4 < codes == dynamic < 0.05
