"""The loss: the Task's own, with its targets, where it has one; what a Task gets wrong is told by its method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from mixq.config import Training
from mixq.errors import InputError, MixqError
from mixq.evaluator import Evaluator
from mixq.qat.loss import Answers, Lessons, distance, loss_of
from mixq.runtimes import get_runtime
from mixq.task import Inputs
from tests.helpers import images
from tests.qat.networks import Uneven, UnevenNetwork, all_trained

SHORT = Training(steps=12, learning_rate=0.1)


class WithTargets(Uneven):
    """Learns what the classes are, instead of FP32's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def training(self) -> Iterator[Any]:
        for seed in range(4):
            inputs = images(16, size=12, seed=100 + seed, name="image")
            with torch.inference_mode():
                scores = UnevenNetwork()(torch.from_numpy(inputs["image"]))
            yield inputs, scores.argmax(1).numpy()

    def loss(self, outputs: Mapping[str, Any], teacher: Mapping[str, Any], targets: Any) -> Any:
        (scores,), (wanted,) = outputs.values(), teacher.values()
        self.seen.append((tuple(wanted.shape), targets.shape))
        return torch.nn.functional.cross_entropy(scores, torch.from_numpy(targets))


def test_the_task_may_bring_its_own_loss_and_targets() -> None:
    task = WithTargets()
    evaluator = Evaluator(task, get_runtime("openvino"), latency_budget_s=0.0)
    candidate = evaluator.prepare(all_trained(evaluator, SHORT))
    assert task.seen == [((16, 5), (16,))] * 12
    assert candidate.losses[-1] > 0.01  # a cross-entropy, not a distance


class Returns(WithTargets):
    """Its loss is no tensor that depends on the outputs."""

    def loss(self, outputs: Mapping[str, Any], teacher: Mapping[str, Any], targets: Any) -> Any:
        return 0.5


class Raises(WithTargets):
    def loss(self, outputs: Mapping[str, Any], teacher: Mapping[str, Any], targets: Any) -> Any:
        raise KeyError("no such output")


class Unequal(WithTargets):
    """Too few targets for a batch."""

    def training(self) -> Iterator[Any]:
        for inputs, targets in super().training():
            yield inputs, targets[:-1]


class Half(WithTargets):
    """Targets for some batches only."""

    def training(self) -> Iterator[Any]:
        yield next(super().training())
        yield images(16, size=12, name="image")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Returns, r"Returns\.loss must return a scalar torch tensor that depends on the outputs, got 0\.5"),
        (Raises, r"Raises\.loss raised KeyError: 'no such output' \(test_loss\.py line \d+\)"),
        (Unequal, r"Unequal\.training: a batch of 16 rows came with targets of shape \(15,\)"),
        (Half, r"Half\.training must yield inputs, or pairs \(inputs, targets\), the same for every batch"),
    ],
)
def test_what_the_task_gets_wrong_is_told(task: type[Uneven], told: str) -> None:
    evaluator = Evaluator(task(), get_runtime("openvino"), latency_budget_s=0.0)
    with pytest.raises(InputError, match=told):
        evaluator.prepare(all_trained(evaluator, SHORT))


def test_the_distance_is_the_error_over_the_variance_of_each_output() -> None:
    rng = np.random.default_rng(0)
    wanted = {"a": rng.normal(0, 3, (8, 4)).astype(np.float32), "b": rng.normal(5, 0.1, (8, 2)).astype(np.float32)}
    found = {name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in wanted.items()}
    expected = np.mean([((found[n] - wanted[n]) ** 2).mean() / wanted[n].var() for n in wanted])
    answers = Answers.of({**wanted, "i": np.zeros(8, int)}, None)
    loss = distance({name: torch.from_numpy(value) for name, value in found.items()}, answers)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    """What processes that train together rely on."""
    rng = np.random.default_rng(1)
    wanted = rng.normal(0, 3, (10, 4)).astype(np.float32)
    found = torch.from_numpy(wanted + 1)
    answers = Answers.of({"y": wanted}, np.arange(10))
    parts = [slice(0, 3), slice(3, 10)]
    total = sum(float(distance({"y": found[p]}, answers.rows(p))) * (p.stop - p.start) / 10 for p in parts)
    assert total == pytest.approx(float(distance({"y": found}, answers)), rel=1e-5)
    assert [answers.rows(p).targets.tolist() for p in parts] == [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]]


def test_the_teacher_is_asked_once_a_batch() -> None:
    asked: list[int] = []

    def teacher(inputs: Inputs) -> Inputs:
        asked.append(len(inputs["x"]))
        return {"y": inputs["x"]}

    lessons = Lessons(
        [{"x": np.ones((3, 2), np.float32)}, {"x": np.ones((4, 2), np.float32)}], lambda _: teacher, bytes
    )
    for _ in range(2):
        lessons.answers(0)
        lessons.answers(1)
    assert asked == [3, 4]


def test_what_was_learned_is_known_by_data_and_loss() -> None:
    def identity(task: Uneven) -> str:
        return Evaluator(task, get_runtime("openvino")).lessons.identity()

    class OtherLoss(WithTargets):
        def loss(self, outputs: Mapping[str, Any], teacher: Mapping[str, Any], targets: Any) -> Any:
            return 2 * super().loss(outputs, teacher, targets)

    found = [identity(task) for task in (Uneven(), WithTargets(), WithTargets(), OtherLoss())]
    assert found[1] == found[2]
    assert len(set(found)) == 3


def test_without_a_loss_of_its_own_a_task_is_distilled() -> None:
    assert loss_of(Uneven()) is distance
    assert loss_of(WithTargets()) is not distance


def test_a_model_without_float_outputs_has_nothing_to_learn_from() -> None:
    with pytest.raises(MixqError, match="no float output"):
        Answers.of({"y": np.zeros(3, int)}, None)
