"""Corruptions at fixed strengths for image-like inputs, after Hendrycks & Dietterich 2019: noise, blur, contrast."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mixq.task import Array, Inputs

Corruption = Callable[[Inputs], Inputs]

NOISE = 0.25  # standard deviation, in standard deviations of the input
CONTRAST = 0.5  # what is left of the distance from the image's mean
IMAGE_CHANNELS = (1, 3, 4)


def image_corruptions(example: Inputs) -> Mapping[str, Corruption]:
    """Gaussian noise, blur and contrast for inputs that look like images (N × 1, 3 or 4 × H × W, float); else none."""
    if any(_is_image(value) for value in example.values()):
        return {"gaussian_noise": _on_images(_noise), "blur": _on_images(_blur), "contrast": _on_images(_contrast)}
    return {}


def _is_image(value: Array) -> bool:
    return (
        value.ndim == 4 and value.dtype.kind == "f" and value.shape[1] in IMAGE_CHANNELS and min(value.shape[2:]) >= 8
    )


def _on_images(change: Callable[[Array], Array]) -> Corruption:
    return lambda inputs: {
        name: change(value).astype(value.dtype) if _is_image(value) else value for name, value in inputs.items()
    }


def _noise(images: Array) -> Array:
    # Seeded by shape, so that every model sees the same noise.
    rng = np.random.default_rng(images.shape)
    return np.asarray(images + NOISE * images.std() * rng.standard_normal(images.shape, dtype=np.float32))


def _blur(images: Array) -> Array:
    """A 3 × 3 box, edges repeated."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = images.shape[2:]
    parts = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.asarray(sum(parts) / len(parts))


def _contrast(images: Array) -> Array:
    mean = images.mean((1, 2, 3), keepdims=True)
    return np.asarray(mean + CONTRAST * (images - mean))
