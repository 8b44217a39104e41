"""What the tests of export and verify share: a tiny convolutional network, measured once, and exported folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixq.certificate import CERTIFICATE, FileMark
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.evaluator import Candidate, Evaluation, Evaluator
from mixq.exporter import export
from mixq.runtimes import get_runtime
from mixq.task import Array, Inputs, Outputs, Task

ROWS = 24


class TinyNetwork(torch.nn.Module):
    """Two convolutions and a classifier with fixed random weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 16, 3, stride=2)
        self.classifier = torch.nn.Linear(16, 5)

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
        yield {"image": _images(0)}

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield {"image": _images(1 if split == "search" else 2)}, np.arange(ROWS) % 5

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        (scores,) = outputs.values()
        return {"top1": float(np.mean(scores.argmax(axis=1) == targets))}


def _images(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((ROWS, 3, 12, 12)).astype(np.float32)


@cache
def evaluator(runtime: str = "openvino") -> Evaluator:
    return Evaluator(Tiny(), get_runtime(runtime), threads=1, latency_budget_s=0.01)


MIXED = {"first": Precision.INT8, "second": Precision.INT8}
OTHER = {"second": Precision.INT8, "classifier": Precision.INT8}


@cache
def _measured(runtime: str, *precisions: tuple[str, Precision]) -> tuple[Candidate, Evaluation]:
    host, given = evaluator(runtime), dict(precisions)
    schemes = {name: LayerScheme(precision=given.get(name, Precision.FP32)) for name in host.graph.layer_names}
    candidate = host.prepare(MixedPrecisionConfig(model=host.fingerprint, schemes=schemes))
    return candidate, host.evaluate(candidate)


def measured(precisions: Mapping[str, Precision], runtime: str = "openvino") -> tuple[Candidate, Evaluation]:
    """The candidate with these precisions by layer, FP32 for those that are not named."""
    return _measured(runtime, *precisions.items())


def exported(folder: Path, precisions: Mapping[str, Precision] | None = None, runtime: str = "openvino") -> Path:
    """`folder` with the export of these precisions, MIXED where none are given."""
    candidate, evaluation = measured(MIXED if precisions is None else precisions, runtime)
    return export(evaluator(runtime), candidate, evaluation, folder)


def read_certificate(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
    return found


def write_certificate(folder: Path, certificate: Mapping[str, Any]) -> None:
    (folder / CERTIFICATE).write_text(json.dumps(certificate), encoding="utf-8")


def forge(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and let the certificate vouch for it: what only a look at the content can find."""
    (folder / name).write_bytes(data)
    certificate = read_certificate(folder)
    certificate["files"][name] = FileMark.of(data).model_dump()
    write_certificate(folder, certificate)
