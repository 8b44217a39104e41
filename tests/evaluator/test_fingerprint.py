"""What a configuration is for: weights, calibration data and metric."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mixq.task import Array, Inputs, Task
from tests import tiny
from tests.evaluator.configurations import of
from tests.tiny import Tiny, TinyNetwork


class OtherWeights(Tiny):
    """`Tiny` with one weight changed."""

    def model(self) -> torch.nn.Module:
        network = TinyNetwork().eval()
        with torch.no_grad():
            network.first.weight[0, 0, 0, 0] += 1e-3
        return network


class OtherCalibration(Tiny):
    """`Tiny`, calibrated on one row less."""

    def calibration(self) -> Iterator[Inputs]:
        for inputs in super().calibration():
            yield {"image": inputs["image"][1:]}


class OtherMetric(Tiny):
    """`Tiny`, protecting a metric of another name."""

    primary = "accuracy"


class OtherDirection(Tiny):
    """`Tiny`, for a metric of which less is better."""

    higher_is_better = False


class OtherSearchData(Tiny):
    """`Tiny`, judged on other data: configurations for it are configurations for Tiny."""

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        return super().batches("holdout")


@pytest.mark.parametrize("task", [OtherWeights, OtherCalibration, OtherMetric, OtherDirection])
def test_the_fingerprint_knows_weights_calibration_and_metric(task: type[Task]) -> None:
    assert of(task()).fingerprint != tiny.evaluator().fingerprint


@pytest.mark.parametrize("task", [Tiny, OtherSearchData])
def test_the_fingerprint_is_the_same_for_the_same(task: type[Task]) -> None:
    assert of(task()).fingerprint == tiny.evaluator().fingerprint
