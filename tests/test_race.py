"""Racing: order and completeness of what is run, and that the bound of a drop holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mixq.dataset import Split
from mixq.drop import PrimaryMetric
from mixq.evaluation import DroppedError, Glimpse
from mixq.latency import Interval
from mixq.race import consult, look_points, raced_outputs, running_order, seen_drop
from mixq.task import Array, Inputs, Outputs

SEEN = Glimpse(Interval(5.0, 4.9, 5.1), Interval(2.0, 1.9, 2.1), 500_000, 2.0)


def split_of(values: Array, rows: int) -> Split:
    batches = tuple({"x": values[start : start + rows]} for start in range(0, len(values), rows))
    return Split("search", batches, np.zeros(len(values), np.int64))


def doubled(batch: Inputs) -> Outputs:
    return {"y": 2 * batch["x"]}


@pytest.mark.parametrize("count", [1, 7, 100, 203])
@pytest.mark.parametrize("looking", [True, False])
def test_outputs_come_in_the_order_of_the_rows(count: int, looking: bool) -> None:
    values = np.arange(count, dtype=np.float32)
    looks: list[tuple[int, ...]] = []

    def look(numbers: Sequence[int], outputs: Outputs) -> None:
        looks.append(tuple(numbers))
        wanted = np.concatenate([2 * values[5 * n : 5 * n + 5] for n in numbers])
        np.testing.assert_array_equal(outputs["y"], wanted)

    found = raced_outputs(doubled, split_of(values, 5), look if looking else None)
    np.testing.assert_array_equal(found["y"], 2 * values)
    assert [len(numbers) for numbers in looks] == (sorted(look_points(-(-count // 5))) if looking else [])


def test_the_order_is_shuffled_the_same_every_time_with_a_short_batch_last() -> None:
    split = split_of(np.arange(103, dtype=np.float32), 5)
    order = running_order(split)
    assert order == running_order(split)
    assert sorted(order) == list(range(21))
    assert order != sorted(order)
    assert order[-1] == 20


def test_looks_have_enough_batches_to_be_worth_it() -> None:
    assert look_points(10) == set()
    assert look_points(16) == {8}
    assert look_points(26) == {13}
    assert look_points(80) == {10, 20, 40}


def mean(outputs: Outputs, targets: Array) -> float:
    return float(outputs["y"].mean())


def median(outputs: Outputs, targets: Array) -> float:
    return float(np.median(outputs["y"]))


@pytest.mark.slow
@pytest.mark.parametrize("by_class", [True, False], ids=["sorted by class", "shuffled"])
def test_the_whole_splits_drop_is_seldom_below_the_bound(by_class: bool) -> None:
    """Of 300 networks, each wrong on some rows that FP32 has right, more in some classes than in others."""
    rng = np.random.default_rng(1)
    misses = 0
    for _ in range(300):
        labels = rng.integers(0, 10, 1000)
        labels = np.sort(labels) if by_class else labels
        spoiled = rng.random(1000) < rng.beta(0.5, 8, 10)[labels]
        split = split_of(np.ones(1000, np.float32), 25)
        reference = {"y": np.ones(1000)}
        numbers = running_order(split)[:10]
        rows = np.concatenate([np.arange(25 * n, 25 * n + 25) for n in numbers])
        seen = seen_drop(SEEN, PrimaryMetric("m", mean), split, reference, numbers, {"y": 1.0 - spoiled[rows]})
        assert seen.drop == pytest.approx(spoiled[rows].mean())
        assert seen.drop_low is not None
        misses += seen.drop_low > spoiled.mean() + 1e-12
    assert misses <= 0.03 * 300


def test_a_great_drop_is_seen_for_certain_on_a_part() -> None:
    split = split_of(np.ones(1000, np.float32), 25)
    numbers = running_order(split)[:10]
    half = np.tile([0.0, 1.0], 125)
    seen = seen_drop(SEEN, PrimaryMetric("m", mean), split, {"y": np.ones(1000)}, numbers, {"y": half})
    assert (seen.rows, seen.of_rows, seen.drop) == (250, 1000, 0.5)
    assert seen.drop_low is not None
    assert seen.drop_low > 0.4


def test_a_metric_turned_round_is_seen_alike() -> None:
    """An error of which less is better, on a model that errs more than FP32 on half of the rows."""
    split = split_of(np.ones(1000, np.float32), 25)
    numbers, half = running_order(split)[:10], np.tile([0.0, 1.0], 125)
    up, down = PrimaryMetric("m", mean), PrimaryMetric("m", lambda o, t: -mean(o, t), higher_is_better=False)
    seen = [seen_drop(SEEN, metric, split, {"y": np.ones(1000)}, numbers, {"y": half}) for metric in (up, down)]
    assert seen[0] == seen[1]
    assert seen[0].drop == 0.5


def test_metrics_that_are_no_means_have_a_bound_too() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000)
    split = split_of(values.astype(np.float32), 25)
    numbers = running_order(split)[:20]
    rows = np.concatenate([np.arange(25 * n, 25 * n + 25) for n in numbers])
    seen = seen_drop(SEEN, PrimaryMetric("m", median), split, {"y": values}, numbers, {"y": values[rows] - 0.5})
    assert seen.drop == pytest.approx(0.5)
    assert seen.drop_low == pytest.approx(0.5)


def test_a_metric_that_is_undefined_on_a_part_says_nothing() -> None:
    def undefined(outputs: Outputs, targets: Array) -> float:
        raise ValueError("needs all classes")

    split = split_of(np.ones(400, np.float32), 25)
    assert (
        seen_drop(SEEN, PrimaryMetric("m", undefined), split, {"y": np.ones(400)}, [0, 1], {"y": np.ones(50)}) == SEEN
    )


def test_a_reason_ends_it() -> None:
    consult(None, SEEN)
    consult(lambda glimpse: None, SEEN)
    with pytest.raises(DroppedError, match="too slow") as caught:
        consult(lambda glimpse: "too slow", SEEN)
    assert caught.value.glimpse == SEEN
