"""What the tests of export and verify share: candidates of the tiny task, measured once, and exported folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mixq.certificate import CERTIFICATE, FileMark
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.evaluation import Candidate, Evaluation
from mixq.exporter import export
from tests.tiny import evaluator

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
