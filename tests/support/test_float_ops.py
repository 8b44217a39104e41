"""What no configuration quantizes is said, once, when a model that has it is opened."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mixq.launch import open_evaluator
from mixq.progress import Progress
from mixq.task import Array, Inputs, Outputs, Task
from tests.support.cases import Recurrent


class Sequences(Task):
    primary = "fit"

    def model(self) -> torch.nn.Module:
        return Recurrent(torch.nn.GRU).eval()

    def calibration(self) -> Iterator[Inputs]:
        yield {"x": np.random.default_rng(0).standard_normal((8, 6, 8), dtype=np.float32)}

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        for inputs in self.calibration():
            yield inputs, np.zeros(8)

    def metrics(self, outputs: Outputs, targets: Array) -> dict[str, float]:
        (found,) = outputs.values()
        return {"fit": -float(np.mean(found**2))}


@pytest.mark.slow
def test_recurrent_ops_stay_float_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = open_evaluator(Sequences(), "onnxruntime", 1, Progress(quiet=True))
    told = capsys.readouterr().err
    assert told.count("warning: 2 GRU in the model: mixq quantizes no recurrent op; its weights stay float") == 1
    assert evaluator.graph.layer_names == ["before", "after"]
