"""What the experiments that classify colour images share: labelled images, batches of them, accuracy."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

import mixq
from mixq.task import Array, Inputs, Outputs


@dataclass(frozen=True)
class LabelledImages:
    """`images`: uint8, N × H × W × RGB; `labels`: the N class indices."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """As many labels as images, or the accuracy would mean nothing."""
        assert len(self.images) == len(self.labels), f"{len(self.images)} images, {len(self.labels)} labels"


class ImageClassification(mixq.Task):
    """A task over parts of a data set; a part is read when first needed, once for each instance of the task."""

    primary = "top1"
    batch_size: int

    def __init__(self) -> None:
        """Nothing is read yet."""
        super().__init__()
        self._read_once = cache(self.read)

    @abstractmethod
    def read(self, part: str) -> LabelledImages:
        """The images of a part: "calibration", "search", "holdout", or one of the task's own."""

    @abstractmethod
    def preprocess(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """N × H × W × RGB in, what the network takes out: N × 3 × H × W."""

    def inputs(self, part: str) -> Iterator[Inputs]:
        """The images of a part as inputs of the network, `batch_size` at a time."""
        images = self._read_once(part).images
        for start in range(0, len(images), self.batch_size):
            yield {"image": self.preprocess(images[start : start + self.batch_size])}

    def calibration(self) -> Iterator[Inputs]:
        """The images of the part "calibration"."""
        return self.inputs("calibration")

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        """The images and labels of the part "search" or "holdout"."""
        labels = self._read_once(split).labels
        for i, inputs in enumerate(self.inputs(split)):
            yield inputs, labels[i * self.batch_size : (i + 1) * self.batch_size]

    def metrics(self, outputs: Outputs, targets: Array) -> dict[str, float]:
        """Accuracy of the best guess, and of the best five, as fractions."""
        (logits,) = outputs.values()
        return {"top1": top_k_accuracy(logits, targets, 1), "top5": top_k_accuracy(logits, targets, 5)}


def mixed_order(count: int) -> NDArray[np.int64]:
    """The rows 0 … count - 1 in a fixed random order, so that a batch of data sorted by class is a fair sample."""
    return np.random.default_rng(0).permutation(count)


def top_k_accuracy(logits: Array, targets: Array, k: int) -> float:
    """The fraction of rows whose class index is among the `k` largest logits; of equal logits the first counts."""
    own = np.take_along_axis(logits, targets[:, None], axis=1)
    before = np.arange(logits.shape[1]) < targets[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return float(((rank < k) & ~np.isnan(own[:, 0])).mean())
