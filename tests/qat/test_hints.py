"""Hints: tensors between the blocks of a network that training brings close to FP32's too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from mixq.config import RecipeStep, Training
from mixq.evaluator import Evaluator
from mixq.graph import Graph, serialize
from mixq.graph.model import with_outputs
from mixq.qat.hints import MOST, find_hints
from mixq.qat.loss import Lessons
from mixq.runtimes import get_runtime
from mixq.show import configuration as shown_configuration
from mixq.task import Array, Inputs
from tests.helpers import CALIBRATE, Net, images, ort_run, residual
from tests.qat.networks import all_qat, all_trained, trainer_of, uneven
from tests.qat.test_loss import WithTargets

BATCHES = [images(8, name="image", seed=seed) for seed in range(4)]
PLAIN, HINTED = Training(steps=40, learning_rate=0.1), Training(steps=40, learning_rate=0.1, hints=1.0)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return residual()


def inside(graph: Graph, tensors: Sequence[str], batch: Inputs) -> Mapping[str, Array]:
    found = ort_run(serialize(with_outputs(graph.model, tensors)))(batch)
    return {name: found[name] for name in tensors}


def test_those_behind_a_trained_layer_are_wanted(graph: Graph) -> None:
    lessons = Lessons(BATCHES, ort_run, lambda: serialize(graph.model))

    def tensors(*trained: str) -> tuple[str, ...]:
        hints = find_hints(graph, trained, lessons, 1.0)
        return hints.tensors if hints else ()

    block, head = graph.by_name["left"].input, graph.by_name["head"].input
    assert tensors("stem", "right") == (block, head)
    assert tensors("right") == (head,)
    assert tensors("head") == ()  # behind it are the outputs alone
    assert find_hints(graph, graph.layer_names, lessons, 0.0) is None


def test_of_many_some_are_wanted_from_the_first_to_the_last() -> None:
    net = Net(3, 8, 8, name="image")
    between = ["image"]
    for index in range(3 * MOST):
        between.append(net.conv(between[-1], 3, f"layer{index}"))
    graph = net.graph(between.pop(), example=BATCHES[0], ranks=[4])
    lessons = Lessons(BATCHES, ort_run, lambda: serialize(graph.model))
    hints = find_hints(graph, graph.layer_names, lessons, 1.0)
    assert hints is not None
    found = [between.index(name) for name in hints.tensors]
    assert (found[0], found[-1], len(found)) == (1, len(between) - 1, MOST)
    assert set(np.diff(found)) <= {3, 4}


def test_the_loss_is_that_of_the_outputs_and_the_weighted_mean_of_theirs(graph: Graph) -> None:
    plain = Lessons(BATCHES, ort_run, lambda: serialize(graph.model))
    hints = find_hints(graph, graph.layer_names, plain, 0.5)
    assert hints is not None
    lessons = plain.hinted(hints)
    wanted = {**inside(graph, hints.tensors, BATCHES[1]), **ort_run(serialize(graph.model))(BATCHES[1])}
    rng = np.random.default_rng(0)
    found = {name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in wanted.items()}
    errors = {name: np.square(found[name] - wanted[name]).mean() / wanted[name].var() for name in wanted}
    expected = [error for name, error in errors.items() if name not in hints.tensors]
    expected += [0.5 * np.mean([errors[name] for name in hints.tensors])]
    outputs, answers = {name: torch.from_numpy(value) for name, value in found.items()}, lessons.answers(1)
    assert float(lessons.loss(outputs, answers)) == pytest.approx(sum(expected), rel=1e-4)
    parts = [slice(0, 3), slice(3, 8)]  # of processes that train together
    shares = [
        float(lessons.loss({name: value[p] for name, value in outputs.items()}, answers.rows(p)))
        * (p.stop - p.start)
        / 8
        for p in parts
    ]
    assert sum(shares) == pytest.approx(sum(expected), rel=1e-4)


@pytest.mark.slow
def test_a_network_whose_blocks_are_rescaled_has_hints_of_its_own(graph: Graph) -> None:
    """Of tensors that were not rescaled, the distance would be of the order of 1."""
    trainer = trainer_of(graph, BATCHES[0], BATCHES)
    config = all_qat(graph, HINTED).model_copy(update={"recipe": (RecipeStep(name="equalize"), *CALIBRATE)})
    assert trainer.trained(config).losses[0] < 0.01


@pytest.mark.slow
def test_a_training_that_has_something_to_mend_mends_them() -> None:
    evaluator = uneven()
    losses = evaluator.prepare(all_trained(evaluator, HINTED)).losses
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert losses[0] > 1.1 * evaluator.prepare(all_trained(evaluator, PLAIN)).losses[0]


@pytest.mark.slow
def test_a_task_s_own_loss_stands_alone() -> None:
    def losses(training: Training) -> tuple[float, ...]:
        evaluator = Evaluator(WithTargets(), get_runtime("openvino"), latency_budget_s=0.0)
        return evaluator.prepare(all_trained(evaluator, training)).losses

    short = Training(steps=6, learning_rate=0.1)
    assert losses(short) == losses(short.model_copy(update={"hints": 1.0}))


def test_the_shared_start_has_them_too(graph: Graph) -> None:
    trainer = trainer_of(graph, BATCHES[0], BATCHES)
    notes: list[str] = []
    trainer.trained(all_qat(graph, Training(steps=5, learning_rate=0.1, bank=5, hints=1.0)), notes.append)
    plain: list[str] = []
    trainer.trained(all_qat(graph, Training(steps=5, learning_rate=0.1, bank=5)), plain.append)
    assert [line for line in notes if "shared" in line] != [line for line in plain if "shared" in line]


def test_a_configuration_that_is_shown_says_so(graph: Graph) -> None:
    lines = [shown_configuration(all_qat(graph, training)).splitlines()[1] for training in (PLAIN, HINTED)]
    assert lines == ["training: 40 steps at 0.1", "training: 40 steps at 0.1, hints 1"]
