"""Interactions: exact for outputs that are linear in the layers' deltas, near the KL for small ones."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mixq import measures
from mixq.deltas import BLOCKS, SKETCH, Deltas, Interactions
from mixq.task import Array, Outputs

LAYERS = ("a", "b", "c")


def planted(rows: int, classes: int, size: float, common: float) -> tuple[Array, dict[str, Array]]:
    """Scores, and a delta for each layer; `common` of each is the same for all layers."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(rows, classes))
    return rng.normal(0, 2, (rows, classes)), {
        name: size * (common * shared + (1 - common) * rng.normal(size=(rows, classes))) for name in LAYERS
    }


def interactions_of(reference: Outputs, targets: Array, outputs: dict[str, Outputs]) -> Interactions:
    deltas = Deltas(reference, targets)
    for name, found in outputs.items():
        deltas.add(name, "int8", found)
    return deltas.interactions()


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_the_relative_error_of_a_mix_is_predicted_exactly(common: float) -> None:
    scores, deltas = planted(512, 8, 0.1, common)
    targets = np.zeros((512, 8))
    found = interactions_of({"y": scores}, targets, {name: {"y": scores + d} for name, d in deltas.items()})
    for names in (("a",), ("a", "b"), LAYERS):
        mix = scores + sum(deltas[name] for name in names)
        want = measures.relative_mse({"y": scores}, {"y": mix})
        # Off the diagonal the products are drawn to 0 by what the rows disagree on them: little, where there is much.
        assert found.error(dict.fromkeys(names, "int8")) == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("given", ["scores", "probabilities"])
@pytest.mark.parametrize("common", [0.0, 0.5])
def test_the_kl_of_a_mix_is_predicted_to_second_order(common: float, given: str) -> None:
    scores, deltas = planted(2000, 10, 0.05, common)
    targets = np.zeros(2000, np.int64)

    def output(change: Array) -> Outputs:
        values = scores + change
        return {"y": values if given == "scores" else measures.probabilities(values)}

    reference = output(np.zeros(1))
    found = interactions_of(reference, targets, {name: output(delta) for name, delta in deltas.items()})
    for names in (("a",), ("a", "c"), LAYERS):
        mix = output(np.sum([deltas[name] for name in names], axis=0))
        want = measures.kl_divergence(reference["y"], mix["y"])
        assert found.error(dict.fromkeys(names, "int8")) == pytest.approx(want, rel=0.06)


def test_the_kl_of_tokens_is_predicted_as_that_of_rows() -> None:
    """rows × time × vocabulary, with a right class for every token."""
    scores, deltas = planted(2000, 10, 0.05, 0.5)
    targets = np.zeros((400, 5), np.int64)

    def output(change: Array) -> Outputs:
        return {"y": (scores + change).reshape(400, 5, 10)}

    found = interactions_of(output(np.zeros(1)), targets, {name: output(delta) for name, delta in deltas.items()})
    want = measures.kl_divergence(scores, scores + deltas["a"] + deltas["c"])
    assert found.error({"a": "int8", "c": "int8"}) == pytest.approx(want, rel=0.06)


@pytest.mark.parametrize("rows_that_err", [64, 8], ids=["all rows", "one block of rows"])
def test_a_projections_error_is_within_its_bound(rows_that_err: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 200 projections of 2,048 numbers to 512: right on average, the deviation that of Weinberger's lemma."""
    monkeypatch.setattr("mixq.deltas.SKETCH", 512)
    scores, deltas = planted(64, 32, 0.1, 0.5)
    mix = scores + deltas["a"] * (np.arange(64) < rows_that_err)[:, None]
    want = measures.relative_mse({"y": scores}, {"y": mix})
    found = []
    for seed in range(200):
        projected = Deltas({"y": scores}, np.zeros((64, 32)), seed)
        projected.add("a", "int8", {"y": mix})
        found.append(projected.interactions().error({"a": "int8"}) / want - 1)
    bound = np.sqrt(2 / (512 if rows_that_err == 64 else 512 / BLOCKS))
    assert abs(np.mean(found)) < 4 * bound / np.sqrt(200)
    assert 0.5 * bound < np.std(found) < 1.2 * bound


def test_every_layer_is_projected_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the products of different layers would be noise: of two layers with one delta they are equal."""
    monkeypatch.setattr("mixq.deltas.SKETCH", 512)
    scores, deltas = planted(64, 32, 0.1, 0.5)
    changed = {"y": scores + deltas["a"]}
    found = interactions_of({"y": scores}, np.zeros((64, 32)), {"a": changed, "b": changed}).matrix
    assert np.ptp(found) < 0.02 * found.max()


def test_what_fits_is_kept_as_it_is() -> None:
    scores, deltas = planted(64, 1024, 0.1, 0.5)
    assert scores.size == SKETCH
    changed = {"y": scores + deltas["a"]}
    found = interactions_of({"y": scores}, np.zeros((64, 1024)), {"a": changed})
    assert found.error({"a": "int8"}) == pytest.approx(measures.relative_mse({"y": scores}, changed), rel=1e-6)


@pytest.mark.parametrize("classes", [False, True], ids=["logits of tokens", "class scores"])
def test_huge_outputs_need_little_memory_beside_them(classes: bool) -> None:
    """40 MB of float32 outputs, of which a float64 copy would be 80."""
    rng = np.random.default_rng(0)
    reference, changed = ({"y": rng.standard_normal((100, 100_000), dtype=np.float32)} for _ in range(2))
    targets = np.zeros(100, np.int64) if classes else np.zeros((100, 10))
    tracemalloc.start()
    found = Deltas(reference, targets)
    for layer in LAYERS:
        found.add(layer, "int8", changed)
    error, _ = found.interactions().error({"a": "int8"}), measures.relative_mse(reference, changed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error > 0
    assert peak < 20e6


def test_huge_outputs_are_sketched() -> None:
    scores, deltas = planted(64, 30_000, 0.1, 0.5)
    targets = np.zeros((64, 30_000))
    found = interactions_of({"y": scores}, targets, {name: {"y": scores + d} for name, d in deltas.items()})
    want = measures.relative_mse({"y": scores}, {"y": scores + deltas["a"] + deltas["b"]})
    assert found.error({"a": "int8", "b": "int8"}) == pytest.approx(want, rel=0.05)


def test_products_that_the_rows_disagree_on_are_drawn_to_zero() -> None:
    scores, deltas = planted(16, 2, 0.1, 0.0)
    targets = np.zeros((16, 2))
    found = interactions_of({"y": scores}, targets, {name: {"y": scores + d} for name, d in deltas.items()}).matrix
    raw = {name: (delta / np.sqrt((scores**2).mean() * scores.size)).reshape(-1) for name, delta in deltas.items()}
    for i, left in enumerate(LAYERS):
        assert found[i, i] == pytest.approx(raw[left] @ raw[left], rel=1e-5)
        for j, right in enumerate(LAYERS[:i]):
            assert abs(found[i, j]) < 0.5 * abs(raw[left] @ raw[right])


def test_several_outputs_count_alike_and_integers_not() -> None:
    scores, deltas = planted(400, 4, 0.1, 0.0)
    reference = {"big": 1000 * scores, "small": scores, "index": np.zeros(400, np.int64)}
    changed = {"big": 1000 * (scores + deltas["a"]), "small": scores, "index": np.ones(400, np.int64)}
    found = interactions_of(reference, np.zeros((400, 4)), {"a": changed})
    assert found.error({"a": "int8"}) == pytest.approx(measures.relative_mse(reference, changed), rel=1e-5)


def test_layers_in_other_schemes_add_nothing() -> None:
    found = Interactions.diagonal({("a", "int8"): 0.5, ("a", "bf16"): 0.1, ("b", "int8"): 0.25})
    assert found.error({"a": "int8", "b": "int8"}) == 0.75
    assert found.error({"a": "bf16", "b": "fp32"}) == pytest.approx(0.1)
    assert found.error({"a": "fp32"}) == Interactions().error({"a": "int8"}) == 0.0
