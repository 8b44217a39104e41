"""Transposed convolutions: every way to say how large the output is becomes one that all runtimes compute alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixq.errors import InputError
from mixq.graph import serialize
from mixq.runtimes import NAMES, get_runtime
from tests.helpers import Net, images, reference_run

WAYS: dict[str, dict[str, Any]] = {
    "same_upper": {"auto_pad": "SAME_UPPER"},
    "same_lower": {"auto_pad": "SAME_LOWER"},
    "valid": {"auto_pad": "VALID"},
    "output_shape": {"output_shape": [12, 10], "auto_pad": "SAME_UPPER"},
    "output_shape_lower": {"output_shape": [12, 10], "auto_pad": "SAME_LOWER"},
    "longer": {"output_shape": [18, 15], "strides": [3, 3]},
}
# Where output_shape alone has to cut, the reference has no rule.
CASES = [(way, kernel) for way in WAYS for kernel in (2, 3, 4) if (way, kernel) != ("longer", 4)]


def transposed(kernel: int, size: tuple[int | str, int | str] = (6, 5), **attributes: Any) -> Net:
    net = Net(4, *size)
    weight = net.weight("w", 4, 3, kernel, kernel)
    net.op("ConvTranspose", "x", weight, name="y", **{"strides": [2, 2], **attributes})
    return net


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize(("way", "kernel"), CASES)
def test_runtimes_agree_with_the_standard(runtime: str, way: str, kernel: int) -> None:
    net = transposed(kernel, **WAYS[way])
    example = {"x": images(2, 4)["x"][:, :, :6, :5]}
    graph = net.graph("y", example=example, ranks=[4])
    got = get_runtime(runtime).compile(serialize(graph.model), 1).run(example)["y"]
    want = reference_run(net.model("y", ranks=[4]).SerializeToString())(example)["y"]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_output_shape_needs_a_known_input() -> None:
    net = transposed(3, ("height", "width"), output_shape=[12, 10])
    with pytest.raises(InputError, match="'y': output_shape with an input of unknown size; give it pads"):
        net.graph("y", example={"x": images(2, 4)["x"]}, ranks=[4])
