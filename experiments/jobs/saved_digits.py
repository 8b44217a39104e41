"""The digits as files: a task that starts without torch, for workers that are started hundreds of times."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mixq
from mixq.task import Array, Inputs, Outputs

FOLDER = "MIXQ_SAVED_DIGITS"
MODEL, PARTS = "digits.onnx", "digits.npz"
BATCH_SIZE = 64


class SavedDigits(mixq.Task):
    """What `save` left in the folder that the environment names."""

    primary = "top1"

    def model(self) -> Path:
        return Path(os.environ[FOLDER]) / MODEL

    def calibration(self) -> Iterator[Inputs]:
        yield from (inputs for inputs, _ in _batches("calibration"))

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield from _batches(split)

    def metrics(self, outputs: Outputs, targets: Array) -> dict[str, float]:
        (scores,) = outputs.values()
        return {"top1": float(np.mean(scores.argmax(axis=1) == targets))}


def _batches(part: str) -> Iterator[tuple[Inputs, Array]]:
    with np.load(Path(os.environ[FOLDER]) / PARTS, allow_pickle=False) as arrays:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    for start in range(0, len(images), BATCH_SIZE):
        yield {"image": images[start : start + BATCH_SIZE]}, labels[start : start + BATCH_SIZE]


def save(folder: Path) -> None:
    """The network in FP32 and the digits of every part."""
    from experiments.digits.digits_data import read_digits
    from experiments.digits.task import Digits
    from mixq.evaluator import Evaluator
    from mixq.runtimes import get_runtime

    (folder / MODEL).write_bytes(Evaluator(Digits(), get_runtime("openvino")).reference.model)
    arrays: dict[str, Array] = {}
    for part, source in (("calibration", "training"), ("search", "search"), ("holdout", "holdout")):
        digits = read_digits(source)
        rows = slice(4 * BATCH_SIZE) if part == "calibration" else slice(None)
        arrays |= {f"{part}_images": digits.images[rows], f"{part}_labels": digits.labels[rows]}
    np.savez(folder / PARTS, allow_pickle=False, **arrays)
