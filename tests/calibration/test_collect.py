"""Collecting statistics: of every tensor asked for, from all batches, in constant memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from mixq.calibration import collect
from mixq.errors import InputError
from mixq.graph import Graph, serialize
from mixq.graph.model import Run, with_outputs
from mixq.task import Inputs, Outputs
from tests.helpers import Net, images, ort_run, residual

IMAGES = [images(rows, seed=rows, name="image") for rows in (4, 3, 5)]


def test_statistics_of_inputs_and_of_tensors_inside() -> None:
    graph = residual()
    names = ["image", graph.layer("left").input, graph.layer("head").output]
    found = collect(graph, names, IMAGES, ort_run).tensors
    assert list(found) == names
    run = ort_run(serialize(with_outputs(graph.model, names[1:])))
    for name in names:
        values = np.concatenate([{**batch, **run(batch)}[name].reshape(-1) for batch in IMAGES])
        assert (found[name].low, found[name].high) == pytest.approx((values.min(), values.max()))
        assert found[name].counts.sum() == values.size


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(InputError, match="calibration set is empty"):
        collect(residual(), ["image"], [], ort_run)


def test_nan_is_refused_with_the_tensor() -> None:
    graph = root()
    with pytest.raises(InputError, match="tensor 'root': an activation is NaN"):
        collect(graph, ["x", "root"], [{"x": np.full((1, 4, 2, 2), -1, np.float32)}], ort_run)


def root() -> Graph:
    net = Net(4, 2, 2)
    return net.graph(
        net.conv(net.op("Sqrt", "x", name="root"), 4, "last"),
        example={"x": np.ones((2, 4, 2, 2), np.float32)},
        ranks=[4],
    )


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    graph = root()
    few, many = peak(graph, 10), peak(graph, 1000)
    assert many == pytest.approx(few, rel=0.1)


def peak(graph: Graph, batches: int) -> int:
    """Bytes allocated at once, at most, while collecting from a stream."""

    def stream() -> Iterator[Inputs]:
        for seed in range(batches):
            yield {"x": np.random.default_rng(seed).uniform(size=(64, 4, 2, 2)).astype(np.float32)}

    def compile_run(model: bytes) -> Run:
        del model

        def run(inputs: Inputs) -> Outputs:
            return {"root": np.sqrt(inputs["x"]), "last": inputs["x"] - 1}

        return run

    tracemalloc.start()
    try:
        collect(graph, ["x", "root", "last"], stream(), compile_run)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
