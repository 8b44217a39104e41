"""scikit-learn's handwritten digits, upscaled to 32 × 32, in three parts that share no image.

Of every class, images 0 and 1 of each four are for training, 2 for the search, 3 for the holdout. No random
number decides, so the parts are the same for every version of every library. Search and holdout have the same
writers as training, so recognizing them is easier than recognizing a stranger's digits.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional as F

SIDE = 32
PARTS = {"training": (0, 1), "search": (2,), "holdout": (3,)}


class LabelledDigits(NamedTuple):
    """`images`: N × 1 × SIDE × SIDE, ink in 0 … 1; `labels`: the N digits."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def read_digits(part: str) -> LabelledDigits:
    """The digits of a part ("training", "search" or "holdout"), in the order of the data set."""
    pixels, labels = load_digits(return_X_y=True)
    rows = np.isin(_rank_in_class(labels) % 4, PARTS[part])
    return LabelledDigits(_upscaled(pixels[rows]), labels[rows].astype(np.int64))


def _rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row, how many rows before it have the same label."""
    rank = np.empty_like(labels)
    for label in np.unique(labels):
        rows = labels == label
        rank[rows] = np.arange(rows.sum())
    return rank


def _upscaled(pixels: NDArray[np.float64]) -> NDArray[np.float32]:
    """N × 64 with ink in 0 … 16, bilinearly upscaled."""
    small = torch.from_numpy(pixels.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    images: NDArray[np.float32] = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear").numpy()
    return images
