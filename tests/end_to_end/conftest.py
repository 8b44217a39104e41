"""Two finished searches: one by the function, one by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mixq
from tests.end_to_end.blobs import SPACE, TASK, TRIALS, Searched, command, written


@pytest.fixture(scope="package", autouse=True)
def _short_timing() -> Iterator[None]:
    """Time matters to no test here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixq.latency.PATIENCE", 1)
        patch.setattr("mixq.latency.TIMINGS", 1)
        yield


@pytest.fixture(scope="package")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """By the function, everything at its default."""
    folder = tmp_path_factory.mktemp("searched")
    space = written(folder, SPACE)
    return Searched(mixq.search(TASK, space, folder / "out", trials=TRIALS, quiet=True), space)


@pytest.fixture(scope="package")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command line, on ONNX Runtime; its folder."""
    folder = tmp_path_factory.mktemp("commanded")
    space = written(folder, SPACE)
    options = ("--runtime", "onnxruntime", "--trials", "10", "--tracking", "none", "--quiet", "--sampler", "tpe")
    assert command("search", TASK, "--space", space, "--out", folder / "out", *options) == 0
    return folder / "out"
