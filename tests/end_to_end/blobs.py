"""What whole searches share: the task, the spaces, and the ways to start a search and to look at one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixq
from mixq.cli import main
from mixq.evaluator import Evaluator
from mixq.task import Array, Inputs
from tests.tiny import Tiny, TinyNetwork

ROOT = Path(__file__).parents[2]
TASK = "tests.end_to_end.blobs:Blobs"
TRIALS = 12
FILES = (
    "best.onnx",
    "best.json",
    "probe.npz",
    "certificate.json",
    "summary.json",
    "pareto.csv",
    "sensitivity.csv",
    "report.html",
    "study.db",
)
SPACE = """
precisions: [fp32, bf16, int8]
stages: [ptq, qat]
training: {steps: [3], learning_rate: [0.00001]}
objectives: [latency, size]
constraints: {max_drop: 0.05}
"""
IMPOSSIBLE = """
precisions: [fp32, int8]
constraints: {max_drop: 0, max_latency_ms: 0.000001}
"""


class BlobsNetwork(TinyNetwork):
    """Wide enough for formats to differ in size."""

    def __init__(self) -> None:
        super().__init__(16, 32)


class Blobs(Tiny):
    """Noise images; the right class is the one that the network finds in FP32."""

    def model(self) -> torch.nn.Module:
        return BlobsNetwork().eval()

    def calibration(self) -> Iterator[Inputs]:
        yield {"image": images(0, 32)}

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield labelled(split)


def images(seed: int, rows: int) -> Array:
    """Each with a level of its own, so that classes differ."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, 3, 24, 24)) + 2 * rng.standard_normal((rows, 3, 1, 1))
    return noise.astype(np.float32)


def labelled(split: str) -> tuple[dict[str, Array], Array]:
    inputs = images(1 if split == "search" else 2, 60)
    with torch.inference_mode():
        return {"image": inputs}, BlobsNetwork()(torch.from_numpy(inputs)).numpy().argmax(1)


@dataclass(frozen=True)
class Searched:
    """A finished search, and the space's file that it was made with."""

    result: mixq.SearchResult
    space: Path

    @property
    def folder(self) -> Path:
        return self.result.folder

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return found


def written(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def counted(patch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the configurations that are evaluated from now on."""
    seen: list[str] = []
    evaluate = Evaluator.evaluate

    def note(self: Evaluator, candidate: Any, *judge: Any) -> Any:
        seen.append(candidate.config.id)
        return evaluate(self, candidate, *judge)

    patch.setattr(Evaluator, "evaluate", note)
    return seen


def command(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])
