"""Trainer: what is trained longer goes on from where it was, bit by bit; the shared start; what ends a training."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixq.affine import NEAREST
from mixq.array_store import ArrayStore
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, Training
from mixq.errors import MixqError
from mixq.evaluation import DroppedError, Glimpse
from mixq.evaluator import Evaluator
from mixq.gains import training_gains
from mixq.graph import Graph
from mixq.ptq import Prepared
from mixq.ptq.neighbours import with_room
from mixq.qat import Standing, store
from mixq.qat.course import RISING, steady_steps
from mixq.runtimes import get_runtime
from mixq.task import Array, Inputs
from tests.helpers import images, residual
from tests.qat.networks import Uneven, UnevenNetwork, all_qat, all_trained, configuration, trainer_of, uneven

pytestmark = pytest.mark.slow

BATCHES = [images(8, name="image", seed=seed) for seed in range(4)]
SHORT, LONG = Training(steps=20, learning_rate=0.1), Training(steps=40, learning_rate=0.1)


@pytest.fixture
def everything_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LONG", 0.0)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return residual()


def assert_same(one: Prepared, other: Prepared) -> None:
    assert one.ranges == other.ranges
    for left, right in ((one.magnitudes, other.magnitudes), (one.values, other.values)):
        known: tuple[Mapping[Any, Any], Mapping[Any, Any]] = (left, right)
        assert known[0].keys() == known[1].keys()
        for key, value in known[0].items():
            np.testing.assert_array_equal(value, known[1][key])


def test_a_longer_training_goes_on_from_a_shorter_one(graph: Graph) -> None:
    """And comes out where it had come out from the beginning."""
    trainer, notes = trainer_of(graph, BATCHES[0], BATCHES), list[str]()
    trainer.trained(all_qat(graph, SHORT))
    continued = trainer.trained(all_qat(graph, LONG), notes.append)
    assert notes[0].startswith(f"QAT step {steady_steps(20) + 1}/40")
    assert len(notes) == 40 - steady_steps(20)
    whole = trainer_of(graph, BATCHES[0], BATCHES).trained(all_qat(graph, LONG))
    assert continued.losses == whole.losses
    assert_same(continued.prepared, whole.prepared)


def test_what_was_trained_is_not_trained_again(graph: Graph) -> None:
    trainer, notes = trainer_of(graph, BATCHES[0], BATCHES), list[str]()
    assert trainer.trained(all_qat(graph, SHORT)) is trainer.trained(all_qat(graph, SHORT), notes.append)
    assert not notes


def test_a_long_search_holds_few_trainings(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest, and the shared start whatever comes after it."""
    monkeypatch.setattr("mixq.qat.trainer.KEPT", 2)
    trainer = trainer_of(graph, BATCHES[0], BATCHES)
    settings = [Training(steps=2, learning_rate=0.1, seed=seed) for seed in range(4)]
    found = [weakref.ref(trainer.trained(all_qat(graph, each))) for each in settings]
    gc.collect()
    assert [each() is not None for each in found] == [False, False, True, True]
    banked, notes = Training(steps=1, learning_rate=0.1, bank=3), list[str]()
    for config in [all_qat(graph, banked), *(all_qat(graph, each) for each in settings[:2]), all_qat(graph, banked)]:
        trainer.trained(config, notes.append)
    assert sum(note.startswith("shared start") for note in notes) == banked.bank


@pytest.mark.usefixtures("everything_takes_long")
def test_a_new_process_finds_what_was_trained(graph: Graph, tmp_path: Path) -> None:
    def trainer() -> Any:
        return trainer_of(graph, BATCHES[0], BATCHES, ArrayStore(tmp_path, "a model"))

    short, notes = trainer().trained(all_qat(graph, SHORT)), list[str]()
    found = trainer().trained(all_qat(graph, SHORT), notes.append)
    assert not notes
    assert (found.losses, found.seconds) == (short.losses, short.seconds)
    assert_same(found.prepared, short.prepared)
    continued = trainer().trained(all_qat(graph, LONG), notes.append)
    assert len(notes) == 40 - steady_steps(20)
    assert_same(continued.prepared, trainer_of(graph, BATCHES[0], BATCHES).trained(all_qat(graph, LONG)).prepared)
    assert continued.seconds > 0


@pytest.mark.usefixtures("everything_takes_long")
def test_a_torn_file_is_trained_anew(graph: Graph, tmp_path: Path) -> None:
    kept = ArrayStore(tmp_path, "a model")
    first = trainer_of(graph, BATCHES[0], BATCHES, kept).trained(all_qat(graph, SHORT))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    notes: list[str] = []
    again = trainer_of(graph, BATCHES[0], BATCHES, kept).trained(all_qat(graph, SHORT), notes.append)
    assert len(notes) == 20
    assert_same(first.prepared, again.prepared)


def test_the_start_is_shared_and_for_trained_layers_only(graph: Graph) -> None:
    """The bank is trained once; a layer that is not trained keeps what its recipe left."""
    banked = Training(steps=4, learning_rate=0.1, bank=30)
    spared, *others = graph.layer_names
    trainer, notes = trainer_of(graph, BATCHES[0], BATCHES), list[str]()
    config = all_qat(graph, banked, **{spared: "int8"})
    start = trainer.start(config, notes.append)
    assert [note.partition(" step")[0] for note in notes] == ["shared start"] * 30
    untrained = trainer.start(all_qat(graph, Training(steps=4, learning_rate=0.1)))
    np.testing.assert_array_equal(start.weight(spared), untrained.weight(spared))
    for name in others:
        assert not np.array_equal(start.weight(name), untrained.weight(name)), name
    trainer.start(all_qat(graph, banked), notes.append)
    assert len(notes) == 30


def test_the_shared_start_is_better_than_none() -> None:
    """For the whole configuration, after the same few steps of its own."""
    evaluator = uneven()
    short = Training(steps=5, learning_rate=0.1)
    alone = evaluator.evaluate(evaluator.prepare(all_trained(evaluator, short)))
    banked = short.model_copy(update={"bank": 60})
    shared = evaluator.evaluate(evaluator.prepare(all_trained(evaluator, banked)))
    assert shared.output_mse < alone.output_mse


def with_own_room(start: Prepared, trained: Prepared, name: str) -> Array:
    """The magnitudes of a layer, and the room that the pairs of its trained weight want on this CPU."""
    if not get_runtime("onnxruntime").placement.sums_saturate:
        return start.magnitudes[name]
    return with_room(start.magnitudes[name], trained.weight(name), start.graph.by_name[name], NEAREST)


def test_scales_are_learned_or_stay_as_they_were() -> None:
    evaluator = uneven()
    start = evaluator.quantizer.prepared(all_trained(evaluator, SHORT).recipe)
    learned = evaluator.trainer.trained(all_trained(evaluator, SHORT)).prepared
    fixed = evaluator.trainer.trained(all_trained(evaluator, SHORT.model_copy(update={"scales": False}))).prepared
    for name in evaluator.graph.layer_names:
        assert not np.array_equal(learned.magnitudes[name], start.magnitudes[name])
        np.testing.assert_array_equal(fixed.magnitudes[name], with_own_room(start, fixed, name))
    assert fixed.ranges == start.ranges
    moved = {name for name in start.ranges if learned.ranges[name] != start.ranges[name]}
    assert len(moved) >= len(evaluator.graph.layer_names)
    for name in moved:  # the zero points stay: ratios of the ends do
        low, high = learned.ranges[name]
        assert low <= 0 <= high


def test_the_range_of_a_tensor_that_an_untrained_layer_reads_stays() -> None:
    evaluator = uneven()
    config = configuration(evaluator, SHORT, first="int8-qat")
    start = evaluator.quantizer.prepared(config.recipe)
    trained = evaluator.trainer.trained(config).prepared
    (own,) = {name for name in start.ranges if trained.ranges[name] != start.ranges[name]}
    assert own == evaluator.graph.by_name["first"].input


def test_a_training_that_does_harm_is_ended_with_its_reason() -> None:
    evaluator = uneven()
    with pytest.raises(MixqError, match=r"training (does harm|diverged).*lower the learning rate"):
        evaluator.prepare(all_trained(evaluator, Training(steps=60, learning_rate=3000.0)))


def test_it_is_asked_on_the_way_whether_to_go_on(graph: Graph) -> None:
    asked: list[Standing] = []
    trained = trainer_of(graph, BATCHES[0], BATCHES).trained(all_qat(graph, LONG), look=asked.append)
    assert [standing.falling for standing in asked] == [False, True]
    assert all(0.2 * trained.seconds < standing.seconds < 5 * trained.seconds for standing in asked)


class Letting:
    """A judge that lets a candidate go for what `reason` says of it."""

    def __init__(self, reason: Any) -> None:
        self.seen: list[Glimpse] = []
        self._reason = reason

    def __call__(self, seen: Glimpse) -> str | None:
        self.seen.append(seen)
        return "enough" if self._reason(seen) else None


class ManyRows(Uneven):
    """Enough of them for looks at a part."""

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        inputs = images(400, size=12, seed=7, name="image")
        with torch.inference_mode():
            yield inputs, UnevenNetwork()(torch.from_numpy(inputs["image"])).numpy()


@cache
def many_rows() -> Evaluator:
    return Evaluator(ManyRows(), get_runtime("openvino"), latency_budget_s=0.0)


def dropped(judge: Letting) -> tuple[list[str], DroppedError]:
    """The notes until `judge` lets a configuration go."""
    evaluator, notes = many_rows(), list[str]()
    training = Training(steps=40, learning_rate=0.1)
    with pytest.raises(DroppedError, match="enough") as caught:
        evaluator.prepare(all_trained(evaluator, training), notes.append, judge)
    return notes, caught.value


def test_what_is_too_slow_is_not_trained_at_all() -> None:
    notes, error = dropped(Letting(lambda seen: seen.speedup.median < 1e6))
    assert not notes
    assert error.glimpse.seconds.keys() == {"recipe", "shared start", "screening"}


def test_a_training_that_takes_too_long_is_ended_early() -> None:
    notes, error = dropped(Letting(lambda seen: (seen.train_s or 0) > 1e-6))
    assert 0 < len(notes) <= RISING
    assert error.glimpse.train_s is not None


def test_a_training_that_cannot_pass_is_ended_before_the_learning_rate_falls() -> None:
    judge = Letting(lambda seen: seen.drop_low is not None and seen.train_s is not None)
    notes, error = dropped(judge)
    assert len(notes) == steady_steps(40)
    assert error.glimpse.drop is not None


def test_the_gain_of_a_layer_is_what_the_network_loses_without_its_training() -> None:
    evaluator = uneven()
    config = all_trained(evaluator, Training(steps=40, learning_rate=0.2))
    gains = training_gains(evaluator, config)
    assert [gain.layer for gain in gains] == sorted(config.qat_layers, key=[g.layer for g in gains].index)
    assert {gain.layer for gain in gains} == set(config.qat_layers)
    assert gains[0].gained > 0
    assert [gain.gained for gain in gains] == sorted((gain.gained for gain in gains), reverse=True)
    found = evaluator.evaluate(evaluator.prepare(config))
    assert gains[0].error == pytest.approx(found.output_mse, rel=1e-5)
    assert gains[0].drop == pytest.approx(found.drop, rel=1e-5)


def test_a_layer_put_back_is_as_its_recipe_left_it() -> None:
    """With one trained layer and no learned scales, without its training the network is the calibrated one."""
    evaluator = uneven()
    fixed = Training(steps=10, learning_rate=0.2, scales=False)
    (gain,) = training_gains(evaluator, configuration(evaluator, fixed, second="int8-qat"))
    int8 = LayerScheme(precision=Precision.INT8)
    plain = MixedPrecisionConfig(
        model=evaluator.fingerprint,
        schemes=dict.fromkeys(evaluator.graph.layer_names, int8),
        recipe=configuration(evaluator, None).recipe,
    )
    assert gain.untrained == pytest.approx(evaluator.evaluate(evaluator.prepare(plain)).output_mse, rel=1e-6)
