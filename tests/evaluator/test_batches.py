"""Batches are filled up and cut again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mixq.batches import run_batches
from mixq.runtimes import Audit, Executable
from mixq.task import Inputs, Outputs

ONLY_RUNS = "batches are run: nothing is to be timed or audited"


class Recorded(Executable):
    """Doubles its input, and notes the shapes that it is given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Inputs) -> Outputs:
        self.shapes.append(inputs["x"].shape)
        return {"y": 2 * inputs["x"], "z": inputs["x"].sum(1)}

    def bind(self, inputs: Inputs) -> Callable[[], None]:
        raise AssertionError(ONLY_RUNS)

    def audit(self, layers: Sequence[object], inputs: Inputs, *, timed: bool = True) -> Audit:
        raise AssertionError(ONLY_RUNS)


@pytest.mark.parametrize("counts", [[4, 4, 4], [4, 4, 3], [4, 1], [1]])
def test_short_batches_are_filled_up_and_cut_again(counts: list[int]) -> None:
    executable = Recorded()
    data = np.random.default_rng(0).standard_normal((sum(counts), 3))
    ends = np.cumsum(counts)
    batches = [{"x": data[end - count : end]} for end, count in zip(ends, counts, strict=True)]
    found = run_batches(executable, batches, 4)
    assert set(executable.shapes) == {(4, 3)}
    np.testing.assert_array_equal(found["y"], 2 * data)
    np.testing.assert_array_equal(found["z"], data.sum(1))
