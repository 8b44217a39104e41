"""A tiny task, complete, for tests to stand on or to change in one point: its evaluator is made once a runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import torch

from mixq.evaluator import Evaluator
from mixq.runtimes import get_runtime
from mixq.task import Array, Inputs, Outputs, Task
from tests.helpers import images

ROWS = 24


class TinyNetwork(torch.nn.Module):
    """Two convolutions of `first` and `second` channels and a classifier with fixed random weights."""

    def __init__(self, first: int = 8, second: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, first, 3, padding=1)
        self.second = torch.nn.Conv2d(first, second, 3, stride=2)
        self.classifier = torch.nn.Linear(second, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.second(torch.relu(self.first(image))))
        scores: torch.Tensor = self.classifier(found.mean((2, 3)))
        return scores


class Tiny(Task):
    """Noise images; the targets are what they are, for the metric's value matters to no test here."""

    primary = "top1"

    def model(self) -> torch.nn.Module:
        return TinyNetwork().eval()

    def calibration(self) -> Iterator[Inputs]:
        yield images(ROWS, size=12, name="image")

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield images(ROWS, size=12, seed=1 if split == "search" else 2, name="image"), np.arange(ROWS) % 5

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        (scores,) = outputs.values()
        return {"top1": float(np.mean(scores.argmax(axis=1) == targets))}


@cache
def evaluator(runtime: str = "openvino") -> Evaluator:
    return Evaluator(Tiny(), get_runtime(runtime), threads=1, latency_budget_s=0.01)
