"""Class scores, as FP32 and as quantization give them, and the right classes."""

from __future__ import annotations

import numpy as np

from mixq.task import Array

ROWS, CLASSES = 400, 7


def logits(seed: int, rows: int = ROWS) -> Array:
    return (3 * np.random.default_rng(seed).standard_normal((rows, CLASSES))).astype(np.float32)


def nearly(scores: Array, seed: int = 9) -> Array:
    """Scores with a little noise, as quantization leaves them."""
    noise = np.random.default_rng(seed).standard_normal(scores.shape)
    return np.asarray(scores + 0.7 * noise, np.float32)


def labels(rows: int = ROWS) -> Array:
    """The class of the largest logit of seed 0 for two rows of three, else any."""
    rng = np.random.default_rng(5)
    return np.where(rng.random(rows) < 2 / 3, logits(0, rows).argmax(1), rng.integers(0, CLASSES, rows))
