"""Latent weights have the codes that a recipe chose, and are no farther from FP32's than these want it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from mixq import affine
from mixq.config import RecipeStep
from mixq.ptq import Material, Prepared, Quantizer
from mixq.qat.latent import MARGIN, with_latent_weights
from mixq.runtimes import get_runtime
from mixq.task import Array
from tests.helpers import images, ort_run, residual

MATERIAL = Material([images(32, name="image")], ort_run, get_runtime("onnxruntime").placement)


@cache
def prepared(granularity: str, last: str) -> Prepared:
    calibrate = RecipeStep(name="calibrate", params={"granularity": granularity})
    return Quantizer(residual(), MATERIAL).prepared((calibrate, RecipeStep(name=last)))


def steps(found: Prepared, layer: str, values: Array) -> Array:
    """`values` in steps of the layer's weight."""
    qparams = found.weight_qparams(layer)
    return np.asarray(values / affine.along(qparams.scale, qparams.axis, values.ndim))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("layer", residual().layer_names)
def test_codes_stay_and_weights_are_near_those_in_fp32(granularity: str, layer: str) -> None:
    found = prepared(granularity, "adaround")
    start, own = with_latent_weights(found, residual().layer_names), found.own_weight(layer)
    latent, rounded = start.weight(layer), found.rounded(layer)
    np.testing.assert_array_equal(start.rounded(layer), rounded)
    off = np.abs(steps(found, layer, latent - own))
    same = np.abs(steps(found, layer, own - rounded)) <= 0.5 - MARGIN
    assert same.any()
    assert off[same].max() < 1e-5
    assert (off <= np.abs(steps(found, layer, rounded - own)) + 1e-5).all()
    border = 0.5 - np.abs(steps(found, layer, latent - rounded))
    assert border.min() > MARGIN - 1e-4


def test_adaround_has_chosen_otherwise_for_some() -> None:
    """Else the test above says nothing of them."""
    found = prepared("channel", "adaround")
    layers = residual().layer_names
    apart = [np.abs(steps(found, name, found.own_weight(name) - found.rounded(name))).max() for name in layers]
    assert max(apart) > 0.5


def test_the_other_layers_and_the_biases_stay() -> None:
    found = prepared("channel", "adaround")
    start = with_latent_weights(found, ["left"])
    changed = {key for key, value in start.values.items() if value is not found.values[key]}
    assert changed == {("left", 1)}
    assert (start.ranges, start.magnitudes) == (found.ranges, found.magnitudes)


def test_a_weight_that_was_not_rounded_is_its_own_latent_weight() -> None:
    found = prepared("channel", "bias_correction")
    assert with_latent_weights(found, residual().layer_names).values == found.values
