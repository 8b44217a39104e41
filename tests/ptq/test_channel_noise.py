"""The noise of channels: against noise that is put into them and run through the layers, whatever their scales are."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from mixq import affine
from mixq.calibration.histogram import TensorStatistics
from mixq.calibration.observers import MSE
from mixq.graph import Graph, serialize
from mixq.graph.cut import tail
from mixq.graph.layers import row_shapes
from mixq.graph.scaling import find_scale_groups, scaled
from mixq.ptq import Material, channel_noise
from mixq.ptq.channel_noise import Channels, Noise, Reader, sample
from mixq.runtimes import get_runtime
from mixq.task import Array
from tests.helpers import Net, images, ort_run

CHANNELS, SIZE = 6, 24
READERS = ["dense", "grouped", "depthwise", "transposed", "matrix"]
SCALES = np.array([8, 4, 2, 1, 0.5, 0.25])
TENSOR = "first"


@cache
def one_reader(kind: str) -> Graph:
    """A tensor of CHANNELS channels, and one layer that reads it."""
    net = Net(CHANNELS, SIZE, SIZE)
    tensor = net.conv("x", CHANNELS, TENSOR)
    if kind == "matrix":
        return net.graph(net.gemm(net.pooled(tensor), CHANNELS, 40, name="reader"), example=images(3, CHANNELS, SIZE))
    if kind == "transposed":
        output = net.op("ConvTranspose", tensor, net.weight("reader.weight", CHANNELS, 4, 3, 3), name="reader")
    else:
        groups = {"dense": 1, "grouped": 2, "depthwise": CHANNELS}[kind]
        output = net.conv(tensor, 4 * CHANNELS, "reader", groups=groups)
    return net.graph(output, example=images(3, CHANNELS, SIZE), ranks=[4])


def read_by(graph: Graph) -> str:
    (value, *_) = graph.nodes["reader"].inputs
    assert value is not None
    return str(value.name)


def drawn(kind: str, seed: int) -> Array:
    """Values of the tensor read, independent of one another, of a standard deviation of SCALES."""
    random = np.random.default_rng(seed)
    shape = (4096, CHANNELS) if kind == "matrix" else (24, CHANNELS, SIZE, SIZE)
    scales = SCALES.reshape(-1, *[1] * (len(shape) - 2))
    return (scales * np.maximum(random.normal(0.5, 1, shape), 0)).astype(np.float32)


def by_place(values: Array) -> Array:
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])


def channels_of(values: Array) -> Channels:
    found = by_place(values)
    return Channels(found, np.minimum(found.min(0), 0), np.maximum(found.max(0), 0))


def outputs(graph: Graph, values: Array) -> Array:
    """Of the reader without the borders: (places, outputs)."""
    part = tail(graph.model, [read_by(graph)], [str(graph.model.graph.outputs[0].name)])
    (found,) = ort_run(serialize(part))({read_by(graph): values}).values()
    return by_place(found[:, :, 3:-3, 3:-3] if found.ndim == 4 else found).astype(np.float64)


def relative_noise(graph: Graph, values: Array, noisy: Array) -> float:
    """Of each output relative to its signal, their average; means of errors left out."""
    clean = outputs(graph, values)
    return float(((outputs(graph, noisy) - clean).var(0) / clean.var(0)).mean())


@pytest.mark.parametrize("kind", READERS)
def test_gain_is_what_noise_in_a_channel_does_to_the_outputs(kind: str) -> None:
    graph, values, random = one_reader(kind), drawn(kind, 0), np.random.default_rng(1)
    reader = Reader(graph.nodes["reader"], channels_of(values))
    for channel in range(CHANNELS):
        noisy = values.copy()
        noisy[:, channel] += random.normal(0, SCALES[channel], values[:, channel].shape)
        found = reader.gain[channel] * SCALES[channel] ** 2
        assert found == pytest.approx(relative_noise(graph, values, noisy), rel=0.1)


SIGNS = np.array([1, -1, 1, 1, -1, -1])


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("equal", [False, True])
def test_the_noise_is_that_of_codes(kind: str, equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_noise, "WEIGHT_NOISE", 0.0)
    graph, values = one_reader(kind), drawn(kind, 0)
    channels, factor = channels_of(values), SCALES if equal else np.ones(CHANNELS)
    divisor = factor.astype(np.float32).reshape(-1, *[1] * (values.ndim - 2))
    statistics = TensorStatistics()
    statistics.update(values / divisor)
    codes = affine.asymmetric(*MSE().range(statistics))
    noisy = affine.fake_quantize(values / divisor, codes, affine.U8) * divisor
    found = Noise(channels, [Reader(graph.nodes["reader"], channels)]).of(factor)
    assert found == pytest.approx(relative_noise(graph, values, noisy), rel=0.15)


@pytest.mark.parametrize("kind", READERS)
def test_noise_of_weights_is_that_of_rounding_them(kind: str) -> None:
    graph, values = one_reader(kind), drawn(kind, 0)
    reader = Reader(graph.nodes["reader"], channels_of(values))
    layer = graph.by_name["reader"]
    weight = graph.weight(layer.weight)
    axes = tuple(axis for axis in range(weight.ndim) if axis != layer.channel_axis)
    rounded = affine.fake_quantize(weight, affine.symmetric(np.abs(weight).max(axes), layer.channel_axis), affine.S8)
    noise, signal = (np.square(w).astype(np.float64) for w in (rounded - weight, weight))
    spread = values.var((0, *range(2, values.ndim)))  # a bias takes what the means make of the weights' errors
    per_output = [summed_over_inputs(kind, squares, spread) for squares in (noise, signal)]
    assert reader.weight_noise(np.ones(CHANNELS)) == pytest.approx((per_output[0] / per_output[1]).mean(), rel=0.4)
    assert reader.weight_noise(SCALES * SIGNS) == reader.weight_noise(SCALES)


def summed_over_inputs(kind: str, squares: Array, power: Array) -> Array:
    """By output, what it gets of squared weights from inputs of that power."""
    if kind == "transposed":
        return np.asarray(np.einsum("iohw,i->o", squares, power))
    if kind == "matrix":
        return np.asarray(squares @ power) if squares.shape[1] == CHANNELS else np.asarray(squares.T @ power)
    groups = CHANNELS // squares.shape[1]
    found = [part.sum((2, 3)) @ p for part, p in zip(np.split(squares, groups), np.split(power, groups), strict=True)]
    return np.concatenate(found)


@pytest.mark.parametrize("kind", READERS)
def test_what_a_scale_of_channels_costs_does_not_depend_on_those_that_they_have(kind: str) -> None:
    graph, values = one_reader(kind), drawn(kind, 0)
    (group,) = (
        group
        for group in find_scale_groups(graph, row_shapes(graph.model, images(1, CHANNELS, SIZE)))
        if "reader" in group.readers
    )
    other = scaled(graph, [(group, SCALES)])
    factor = np.array([1, 3, 0.5, 2, 1, 0.2]) * SIGNS
    divided = values / SCALES.astype(np.float32).reshape(-1, *[1] * (values.ndim - 2))
    first, second = (
        Noise(channels_of(v), [Reader(g.nodes["reader"], channels_of(v))]).of(f)
        for g, v, f in ((graph, values, factor * SCALES), (other, divided, factor))
    )
    assert first == pytest.approx(second, rel=0.01)


def test_channels_that_do_not_vary_cost_nothing() -> None:
    graph, values = one_reader("depthwise"), drawn("depthwise", 0)
    values[:, :2] = np.array([0.0, 0.3], np.float32)[:, None, None]
    channels = channels_of(values)
    reader = Reader(graph.nodes["reader"], channels)
    assert np.isfinite(reader.gain).all()
    assert reader.gain[0] == 0
    assert np.isfinite(Noise(channels, [reader]).of(np.ones(CHANNELS)))


def test_a_sample_has_values_of_every_channel_and_the_ends_of_all() -> None:
    graph = one_reader("dense")
    batches = [images(16, CHANNELS, SIZE, seed=seed) for seed in range(2)]
    material = Material(batches, ort_run, get_runtime("onnxruntime").placement)
    run = ort_run(serialize(tail(graph.model, ["x"], [read_by(graph)])))
    every = np.concatenate([by_place(run(batch)[read_by(graph)]) for batch in batches])
    first, second = (sample(graph, {read_by(graph): 1}, material)[read_by(graph)] for _ in range(2))
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_allclose(first.low, np.minimum(every.min(0), 0), rtol=1e-5)
    np.testing.assert_allclose(first.high, np.maximum(every.max(0), 0), rtol=1e-5)
    assert len(first.values) >= channel_noise.LEAST
    for channel in range(CHANNELS):
        nearest = np.abs(np.sort(every[:, channel])[:, None] - first.values[None, :50, channel]).min(0)
        assert nearest.max() < 1e-4
