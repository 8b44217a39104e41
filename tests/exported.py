"""Tasks of an .onnx file beside this one, to be copied: many processes read them, and without torch that is quick."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

import mixq
from mixq.task import Array, Inputs, Outputs

MODEL = Path(__file__).with_name("exported.onnx")
TOKENS = "MIXQ_TEST_TOKENS"
ROWS = 24


class Exported(mixq.Task):
    """Noise images, random classes."""

    primary = "top1"

    def model(self) -> Path:
        return MODEL

    def calibration(self) -> Iterator[Inputs]:
        yield images(0)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield images(1 if split == "search" else 2), np.arange(ROWS) % 5

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        (scores,) = outputs.values()
        return {"top1": float(np.mean(scores.argmax(axis=1) == targets))}


class Fatal(Exported):
    """Each token in the folder TOKENS kills one process of a crew while it evaluates."""

    calls = 0

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        self.calls += 1  # the first one is FP32's, before it joins
        if self.calls > 1 and "MIXQ_LEADER" in os.environ:
            for token in Path(os.environ[TOKENS]).glob("*"):
                try:
                    token.unlink()
                except FileNotFoundError:  # another process took it
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().metrics(outputs, targets)


def write(folder: Path) -> Path:
    """The tasks and their model in `folder`; the file of the tasks."""
    from tests.helpers import Net

    net, x = Net(3, 8, 8, name="image"), "image"
    for layer in ("first", "second", "third", "fourth"):
        x = net.op("Relu", net.conv(x, 32, layer))
    onnx.save(net.model(net.gemm(net.pooled(x), 32, 5, "head")), folder / MODEL.name)
    return Path(shutil.copy(__file__, folder / "task.py"))


def images(seed: int) -> Inputs:
    return {"image": np.random.default_rng(seed).normal(size=(ROWS, 3, 8, 8)).astype(np.float32)}
