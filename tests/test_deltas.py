"""Interactions: exact for outputs that are linear in the layers' deltas, near the KL for small ones."""

from __future__ import annotations

import numpy as np
import pytest

from mixq import measures
from mixq.deltas import Deltas, Interactions
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
