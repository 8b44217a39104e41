"""Handwritten digits: `mixq search experiments/digits/task.py:Digits`. Needs no data but what scikit-learn brings."""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

import mixq
from mixq.task import Array, Inputs, Outputs

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: a task is loaded by its path alone

from experiments.digits.digits_data import read_digits
from experiments.digits.digits_network import CHECKPOINT, DigitsNetwork

_BATCH_SIZE = 64
_CALIBRATION_BATCHES = 4


class Digits(mixq.Task):
    """The network of train.py on digits that it was not trained on; the parts are those of digits_data.py."""

    primary = "top1"

    def __init__(self) -> None:
        """Nothing is read yet."""
        super().__init__()
        self._read = cache(read_digits)

    def model(self) -> DigitsNetwork:
        """The network with the weights that train.py wrote."""
        network = DigitsNetwork()
        network.load_state_dict(load_file(CHECKPOINT))
        return network.eval()

    def calibration(self) -> Iterator[Inputs]:
        """The first 256 digits of the training part."""
        images = self._read("training").images[: _CALIBRATION_BATCHES * _BATCH_SIZE]
        return _batches(images)

    def training(self) -> Iterator[Inputs]:
        """The training part, once."""
        return _batches(self._read("training").images)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        """The part "search" or "holdout", with labels."""
        digits = self._read(split)
        for i, inputs in enumerate(_batches(digits.images)):
            yield inputs, digits.labels[i * _BATCH_SIZE : (i + 1) * _BATCH_SIZE]

    def metrics(self, outputs: Outputs, targets: Array) -> dict[str, float]:
        """Accuracy, as a fraction."""
        (logits,) = outputs.values()
        return {"top1": float(np.mean(logits.argmax(axis=1) == targets))}


def _batches(images: NDArray[np.float32]) -> Iterator[Inputs]:
    for start in range(0, len(images), _BATCH_SIZE):
        yield {"image": images[start : start + _BATCH_SIZE]}
