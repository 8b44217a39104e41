"""Corruptions: what they keep, and each against scipy or a closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mixq.corruptions import CONTRAST, NOISE, image_corruptions
from mixq.task import Array, Inputs


def images(*shape: int, dtype: type[np.floating] = np.float32) -> Array:
    return np.random.default_rng(0).normal(2.0, 3.0, shape).astype(dtype)


def corrupted(name: str, inputs: Inputs) -> Inputs:
    return image_corruptions(inputs)[name](inputs)


NAMES = ("gaussian_noise", "blur", "contrast")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_shape_and_type_stay(name: str, channels: int, dtype: type[np.floating]) -> None:
    image = images(5, channels, 9, 8, dtype=dtype)
    found = corrupted(name, {"x": image})["x"]
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    assert np.isfinite(found).all()
    assert (found != image).any()


@pytest.mark.parametrize("name", NAMES)
def test_every_model_sees_the_same(name: str) -> None:
    image = images(5, 3, 8, 8)
    kept = image.copy()
    first, second = (corrupted(name, {"x": image})["x"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("name", NAMES)
def test_other_inputs_beside_an_image_stay(name: str) -> None:
    inputs = {"x": images(2, 3, 8, 8), "tokens": np.arange(6).reshape(2, 3), "scale": images(2, 4)}
    found = corrupted(name, inputs)
    assert found.keys() == inputs.keys()
    assert found["tokens"] is inputs["tokens"]
    assert found["scale"] is inputs["scale"]


@pytest.mark.parametrize(
    "value",
    [images(2, 16), images(2, 2, 8, 8), images(2, 3, 8, 7), images(2, 3, 8, 8).astype(np.uint8), images(2, 3, 2, 8, 8)],
    ids=["matrix", "two channels", "too small", "integers", "video"],
)
def test_what_is_no_image_has_no_corruptions(value: Array) -> None:
    assert image_corruptions({"x": value}) == {}


def test_noise_has_the_strength_that_it_says() -> None:
    image = images(50, 3, 16, 16)
    noise = corrupted("gaussian_noise", {"x": image})["x"].astype(np.float64) - image
    assert noise.std() == pytest.approx(NOISE * image.std(), rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=4 * noise.std() / np.sqrt(noise.size))


def test_blur_is_the_mean_of_nine_neighbors() -> None:
    image = images(2, 3, 9, 8)
    wanted = ndimage.uniform_filter(image.astype(np.float64), size=(1, 1, 3, 3), mode="nearest")
    np.testing.assert_allclose(corrupted("blur", {"x": image})["x"], wanted, rtol=1e-5, atol=1e-5)


def test_contrast_keeps_each_images_mean_and_shrinks_its_deviation() -> None:
    image = images(4, 3, 8, 8) * np.arange(1, 5, dtype=np.float32)[:, None, None, None]
    found = corrupted("contrast", {"x": image})["x"]
    np.testing.assert_allclose(found.mean((1, 2, 3)), image.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.std((1, 2, 3)), CONTRAST * image.std((1, 2, 3)), rtol=1e-5)
