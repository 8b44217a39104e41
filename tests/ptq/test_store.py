"""What is kept of long steps: it comes back bit by bit; a torn file is made anew; owners share nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from mixq.array_store import ArrayStore
from mixq.config import RecipeStep
from mixq.graph import Graph
from mixq.ptq import Material, Prepared, Quantizer, quantizer
from mixq.ptq.equalize import Equalize
from mixq.runtimes import get_runtime
from mixq.task import Array
from tests.helpers import images, ort_run, residual
from tests.ptq.outliers import IMAGES, TOKENS, attention_inputs, opposed_stream

MATERIAL = Material([images(16, name="image")], ort_run, get_runtime("onnxruntime").placement)
RECIPE = tuple(RecipeStep(name=name) for name in ("equalize", "calibrate", "adaround"))


@pytest.fixture(autouse=True)
def everything_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "LONG", 0.0)


Key = TypeVar("Key")


def prepared(
    folder: Path, owner: str = "a model", graph: Graph | None = None, material: Material = MATERIAL
) -> Prepared:
    """By a process that has just begun."""
    found = Quantizer(graph or residual(), material)
    found.store = ArrayStore(folder, owner)
    return found.prepared(RECIPE)


def assert_same(one: Prepared, other: Prepared) -> None:
    assert one.graph.fingerprint == other.graph.fingerprint
    assert one.ranges == other.ranges
    assert one.statistics.tensors.keys() == other.statistics.tensors.keys()
    for name, found in one.statistics.tensors.items():
        twin = other.statistics.tensors[name]
        assert (found.low, found.high, found.limit) == (twin.low, twin.high, twin.limit)
        np.testing.assert_array_equal(found.counts, twin.counts)
    assert_same_arrays(one.magnitudes, other.magnitudes)
    assert_same_arrays(one.values, other.values)


def assert_same_arrays(one: Mapping[Key, Array], other: Mapping[Key, Array]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])


@pytest.fixture
def equalized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each time that the first step is run."""
    log: list[str] = []
    apply = Equalize.apply

    def logged(self: Equalize, prepared: Prepared, material: Material) -> Prepared:
        log.append("equalize")
        return apply(self, prepared, material)

    monkeypatch.setattr(Equalize, "apply", logged)
    return log


def test_what_comes_back_is_what_was_made(tmp_path: Path, equalized: list[str]) -> None:
    made = prepared(tmp_path)
    assert made.graph.fingerprint != residual().fingerprint, "equalize has to change weights for this test"
    assert_same(made, prepared(tmp_path))
    assert equalized == ["equalize"]


@pytest.mark.parametrize("graph", [attention_inputs(residual=True), opposed_stream()], ids=["matrices", "depthwise"])
def test_a_scale_on_a_branch_comes_back(tmp_path: Path, equalized: list[str], graph: Graph) -> None:
    batch = TOKENS if "q" in graph.by_name else IMAGES
    material = replace(MATERIAL, batches=[batch], placement=get_runtime("openvino").placement)
    made = prepared(tmp_path, graph=graph, material=material)
    assert made.graph.layers != graph.layers, "equalize has to put a scale there for this test"
    again = prepared(tmp_path, graph=graph, material=material)
    assert_same(made, again)
    assert made.graph.layers == again.graph.layers
    assert equalized == ["equalize"]


def test_another_owner_shares_nothing(tmp_path: Path, equalized: list[str]) -> None:
    prepared(tmp_path)
    prepared(tmp_path, "another model")
    assert equalized == ["equalize"] * 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_torn_file_is_made_anew(tmp_path: Path, equalized: list[str], damage: str) -> None:
    made = prepared(tmp_path)
    for path in tmp_path.glob("*.prepared"):
        whole = path.read_bytes()
        flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 255]) + whole[len(whole) // 2 + 1 :]
        path.write_bytes({"cut": whole[:-100], "flipped": flipped, "empty": b"", "text": b"not an archive"}[damage])
    assert_same(made, prepared(tmp_path))
    assert equalized == ["equalize"] * 2
    prepared(tmp_path)
    assert equalized == ["equalize"] * 2, "the torn files have been replaced"


def test_what_is_quick_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "LONG", 1e6)
    prepared(tmp_path)
    assert not list(tmp_path.iterdir())


MAKER = """
import sys, time
from pathlib import Path

from mixq.array_store import ArrayStore

store = ArrayStore(Path(sys.argv[1]), "a model")
for key in ("first", "second", "third"):
    with store.making(key):
        if store.load(key) is None:
            with Path(sys.argv[2]).open("a") as made:
                made.write(key + "\\n")
            time.sleep(0.2)
            store.save(key, 1, {})
"""


def test_of_several_processes_one_makes_what_all_need(tmp_path: Path) -> None:
    """Four at once, and one that is killed while it makes: nothing is made twice, nobody waits for the dead one."""
    store, made = ArrayStore(tmp_path / "store", "a model"), tmp_path / "made"
    hanging = MAKER.replace("time.sleep(0.2)", "print(1, flush=True); time.sleep(600)")
    command = [sys.executable, "-c"]
    arguments = [hanging, str(store.folder), str(tmp_path / "other")]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as dead:
        assert dead.stdout is not None
        assert dead.stdout.readline() == "1\n"
        makers = [subprocess.Popen([*command, MAKER, str(store.folder), str(made)]) for _ in range(4)]
        dead.kill()
        assert [maker.wait(timeout=100) for maker in makers] == [0] * 4
    assert made.read_text(encoding="utf-8").splitlines() == ["first", "second", "third"]
    assert not list(store.folder.glob("*.lock"))
