"""What a Task yields is read once, checked, and cut anew; what is wrong with it is an InputError naming the method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixq.dataset import Split, TaskData, rebatched, row_count
from mixq.errors import InputError
from mixq.task import Array, Inputs, Outputs, Task

X = np.arange(24, dtype=np.float32).reshape(6, 4)
IDS = np.arange(6)


class Data(Task):
    """Yields what it is given; `metrics` is called with the outputs and the targets."""

    primary = "top1"

    def __init__(
        self,
        calibration: Any = ({"x": X},),
        batches: Any = (({"x": X}, IDS),),
        metrics: Callable[..., Any] = lambda outputs, targets: {"top1": 0.5},
        holdout: Any = None,
        training: Any = None,
    ) -> None:
        self._calibration, self._batches, self._metrics = calibration, batches, metrics
        self._holdout, self._training = batches if holdout is None else holdout, training
        self.calls: list[str] = []

    def model(self) -> Any:
        self.calls.append("model")
        return "model.onnx"

    def calibration(self) -> Any:
        self.calls.append("calibration")
        return self._calibration

    def batches(self, split: str) -> Any:
        self.calls.append(split)
        return self._batches if split == "search" else self._holdout

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        found: Mapping[str, float] = self._metrics(outputs, targets)
        return found

    def training(self) -> Any:
        return super().training() if self._training is None else self._training


def raising(error: BaseException) -> Iterator[Any]:
    yield {"x": X}
    raise error


def refusal(call: Callable[[], object]) -> str:
    """The message of the InputError that `call` raises, which is one line."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


INPUTS: list[tuple[Any, str]] = [
    ([], "yields nothing; it must yield at least one batch"),
    (None, "must yield batches, got NoneType; use `yield`"),
    (3, "must yield batches, got int"),
    ([X], "must yield dicts name → numpy array, got ndarray"),
    ([{}], "must yield dicts name → numpy array, got dict"),
    ([{"x": [1.0]}], "the input 'x' is a list, not a numpy array"),
    ([{"x": torch.zeros(2, 4)}], "the input 'x' is a Tensor, not a numpy array; convert it, e.g. with tensor.numpy()"),
    ([{"x": X.astype(np.float64)}], "the input 'x' is float64; convert it with .astype(np.float32)"),
    ([{"x": np.array(["a", "b"])}], "the input 'x' is of type <U1; a model takes numbers"),
    ([{"x": X.astype(object)}], "the input 'x' is of type object"),
    ([{"x": X * np.float32(np.nan)}], "the input 'x' holds NaN or infinite values; clean the data"),
    ([{"x": np.full((1, 4), np.inf, np.float32)}], "the input 'x' holds NaN or infinite values"),
    ([{"x": np.float32(1)}], "the input 'x' is a float32, not a numpy array"),
    ([{"x": np.zeros((), np.float32)}], "the input 'x' has no batch axis; put the batch on the first axis"),
    ([{"x": X[:0]}], "the inputs of one batch have [0] rows"),
    ([{"x": X, "y": X[:2]}], "the inputs of one batch have [2, 6] rows; all need the same"),
    ([{1: X}], "an input is named 1; names are strings"),
    ([{"x": X}, {"y": X}], "the inputs are y (float32), before they were x (float32)"),
    ([{"x": X}, {"x": X, "y": X}], "the inputs are x (float32), y (float32), before they were x (float32)"),
    ([{"x": X}, {"x": X.astype(np.int32)}], "the inputs are x (int32), before they were x (float32)"),
]


@pytest.mark.parametrize(("batches", "told"), INPUTS)
def test_what_cannot_be_an_input_is_refused(batches: Any, told: str) -> None:
    assert refusal(lambda: TaskData(Data(batches)).calibration).startswith("Data.calibration")
    assert told in refusal(lambda: TaskData(Data(batches)).calibration)
    if batches is not None:  # then the calibration inputs are those to train with
        assert refusal(lambda: TaskData(Data(training=batches)).training).startswith("Data.training")
        assert told in refusal(lambda: TaskData(Data(training=batches)).training)


@pytest.mark.parametrize(("batches", "told"), INPUTS[3:])
def test_the_inputs_of_a_split_are_checked_alike(batches: Any, told: str) -> None:
    pairs = [(batch, np.zeros(6)) for batch in batches]
    said = refusal(lambda: TaskData(Data(batches=pairs)).split("search"))
    assert said.startswith("Data.batches('search')")
    assert told in said


@pytest.mark.parametrize("other", [{"y": X}, {"x": X.astype(np.float16)}, {"x": X, "y": X}])
def test_a_split_has_the_inputs_of_calibration(other: Inputs) -> None:
    told = "before they were x (float32); names and types must be those of calibration in every batch"
    assert told in refusal(lambda: TaskData(Data(batches=[(other, IDS)])).split("holdout"))
    assert told in refusal(lambda: TaskData(Data(training=[other])).training)


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], "yields nothing"),
        ([{"x": X}], "must yield pairs (inputs, targets), got dict"),
        ([({"x": X}, IDS, IDS)], "must yield pairs (inputs, targets), got tuple"),
        ([({"x": X}, IDS[:4])], "a batch of 6 rows came with targets of shape (4,); yield one target a row"),
        ([({"x": X}, 3)], "targets of shape ()"),
        ([({"x": X}, None)], "the targets are Python objects; yield an array"),
        ([({"x": X}, [[1, 2], [3]])], "the targets are no array: "),
        ([({"x": X}, torch.zeros(6, requires_grad=True))], "the targets are no array: Can't call numpy() on Tensor"),
        ([({"x": X}, IDS), ({"x": X}, IDS[:, None])], "targets of shape (6, 1) came after (6,)"),
    ],
)
def test_what_cannot_be_a_split_is_refused(batches: Any, told: str) -> None:
    said = refusal(lambda: TaskData(Data(batches=batches)).split("search"))
    assert said.startswith("Data.batches('search')")
    assert told in said


def test_targets_may_be_lists_tensors_and_strings() -> None:
    for given_targets in (IDS.tolist(), torch.arange(6), [str(i) for i in IDS]):
        targets = TaskData(Data(batches=[({"x": X}, given_targets)])).split("search").targets
        assert [int(target) for target in targets] == IDS.tolist()


@pytest.mark.parametrize("error", [KeyError("image"), SystemExit(3), ValueError("one\ntwo")])
def test_what_a_generator_raises_is_told_with_its_line(error: BaseException) -> None:
    name, line = type(error).__name__, raising.__code__.co_firstlineno + 2
    place = f"({Path(__file__).name} line {line})"
    for method, call in {
        "Data.calibration": lambda: TaskData(Data(raising(error))).calibration,
        "Data.batches('search')": lambda: TaskData(Data(batches=_pairs(raising(error)))).split("search"),
    }.items():
        said = refusal(call)
        assert said.startswith(f"{method} raised {name}: ")
        assert said.endswith(place)


def _pairs(batches: Iterator[Any]) -> Iterator[Any]:
    return ((batch, IDS) for batch in batches)


def test_an_input_error_of_the_task_is_not_wrapped() -> None:
    assert refusal(lambda: TaskData(Data(raising(InputError("set DATA")))).calibration) == "set DATA"


def test_every_part_is_read_once() -> None:
    task = Data()
    data = TaskData(task)
    for _ in range(2):
        assert data.calibration[0]["x"] is data.calibration[0]["x"]
        assert data.split("search") is data.split("search")
        assert data.split("holdout").rows == 6
        assert row_count(data.example) == 1
    assert task.calls == ["calibration", "search", "holdout"]


class Pairs(Data):
    rows_per_sample = 4


def test_rows_that_belong_together_are_not_cut() -> None:
    told = refusal(lambda: TaskData(Pairs()).split("search"))
    assert "gave 6 rows, which rows_per_sample = 4 does not divide; leave out" in told
    assert TaskData(Pairs(batches=[({"x": X[:4]}, IDS[:4])])).split("search").rows == 4


def measured(task: Data, rows: int = 6) -> dict[str, float]:
    data = TaskData(task)
    return data.metrics({"scores": np.zeros((rows, 3), np.float32)}, data.split("search"))


def no_metric(outputs: Outputs, targets: Array) -> Any:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (lambda *_: {"top1": float("nan")}, "'top1' is nan; a metric must be a finite number"),
        (lambda *_: {"top1": 1.0, "loss": np.float32(np.inf)}, "'loss' is inf"),
        (lambda *_: {"top1": "0.5"}, "'top1' is a str, not a number; return float(...)"),
        (lambda *_: {"top1": None}, "'top1' is a NoneType, not a number"),
        (lambda *_: {"top1": True}, "'top1' is a bool, not a number"),
        (lambda *_: {"top1": np.zeros(1)}, "'top1' is a ndarray, not a number"),
        (lambda *_: {"top1": torch.tensor(0.5)}, "'top1' is a Tensor, not a number"),
        (lambda *_: {"top5": 0.5, "loss": 1}, "returned top5, loss, without the primary metric 'top1'; return it, or"),
        (lambda *_: {}, "returned nothing, without the primary metric 'top1'"),
        (lambda *_: 0.5, "must return a dict name → float, got float"),
        (no_metric, "raised ZeroDivisionError: division by zero (test_dataset.py line "),
        (lambda outputs: {}, "raised TypeError: "),
    ],
)
def test_what_cannot_be_a_metric_is_refused(metrics: Callable[..., Any], told: str) -> None:
    said = refusal(lambda: measured(Data(metrics=metrics)))
    assert said.startswith("Data.metrics")
    assert told in said


def test_metrics_are_floats() -> None:
    found = measured(Data(metrics=lambda *_: {"top1": np.float32(0.5), "rows": np.int64(6), "zero": 0}))
    assert found == {"top1": 0.5, "rows": 6.0, "zero": 0.0}
    assert {type(value) for value in found.values()} == {float}


def test_outputs_have_one_row_a_target() -> None:
    told = "the model's output 'scores' has 3 rows but Data.batches('search') gave 6 targets"
    assert told in refusal(lambda: measured(Data(), rows=3))


def test_equal_splits_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"Data\.batches yields the same data for 'search' and 'holdout'"):
        assert TaskData(Data()).warn_if_splits_are_equal()
    other = [({"x": X}, IDS[::-1])]
    with pytest.warns(UserWarning, match="same data"):
        assert TaskData(Data(holdout=other)).warn_if_splits_are_equal()


@pytest.mark.parametrize("holdout", [[({"x": X + 1}, IDS)], [({"x": X[:5]}, IDS[:5])], [({"x": X[:, :3]}, IDS)]])
def test_unequal_splits_are_not(holdout: Any) -> None:
    task = Data(holdout=holdout)
    task.dynamic_axes = {"x": (1,)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not TaskData(task).warn_if_splits_are_equal()


def test_fingerprints_tell_data_apart_but_not_how_it_is_cut() -> None:
    cut = Data([{"x": X[:1]}, {"x": X[1:]}], [({"x": X[:5]}, IDS[:5]), ({"x": X[5:]}, IDS[5:])])
    same, other = (TaskData(task) for task in (cut, Data([{"x": X + 1}], [({"x": X}, IDS + 1)])))
    data = TaskData(Data())
    assert data.calibration_fingerprint() == same.calibration_fingerprint() != other.calibration_fingerprint()
    assert data.search_fingerprint() == same.search_fingerprint() != other.search_fingerprint()


class Corrupting(Data):
    """With one corruption, `corrupt`."""

    def __init__(self, corrupt: Any) -> None:
        super().__init__()
        self._corrupt = corrupt

    def corruptions(self) -> Any:
        return self._corrupt if self._corrupt is None else {"fog": self._corrupt}


@pytest.mark.parametrize(
    ("corrupt", "told"),
    [
        (None, "Corrupting.corruptions must return a dict name → function of inputs, got NoneType"),
        (lambda inputs: inputs["image"], "Corrupting.corruptions: 'fog' raised KeyError: 'image'"),
        (lambda inputs: None, "'fog' must yield dicts name → numpy array, got NoneType"),
        (lambda inputs: {"x": inputs["x"] * 0.5 * np.ones(1)}, "'fog': the input 'x' is float64"),
        (lambda inputs: {"y": inputs["x"]}, "'fog' changed the inputs' names, types or rows; it must keep them"),
        (lambda inputs: {"x": inputs["x"][:2]}, "'fog' changed the inputs' names, types or rows"),
    ],
)
def test_what_cannot_be_a_corruption_is_refused(corrupt: Any, told: str) -> None:
    assert told in refusal(lambda: TaskData(Corrupting(corrupt)).corruptions()["fog"]({"x": X}))


def test_corruptions_are_the_tasks_or_those_for_images() -> None:
    found = TaskData(Corrupting(lambda inputs: {"x": -inputs["x"]})).corruptions()
    np.testing.assert_array_equal(found["fog"]({"x": X})["x"], -X)
    assert TaskData(Data()).corruptions() == {}
    image = np.zeros((2, 3, 8, 8), np.float32)
    assert set(TaskData(Data([{"x": image}])).corruptions()) == {"gaussian_noise", "blur", "contrast"}


class NoModel(Data):
    def model(self) -> Any:
        raise FileNotFoundError("weights.pt")


def test_what_model_raises_is_told() -> None:
    assert refusal(TaskData(NoModel()).model).startswith("NoModel.model raised FileNotFoundError: weights.pt (test_dat")
    assert TaskData(Data()).model() == "model.onnx"


WIDTHS = st.integers(1, 3)


@given(st.lists(st.tuples(st.integers(1, 7), WIDTHS), min_size=1, max_size=8), st.integers(1, 9))
def test_rebatching_keeps_rows_and_order(shapes: list[tuple[int, int]], rows: int) -> None:
    """Every row holds its own number; rows of unequal widths cannot share a batch."""
    batches, first = [], 0
    for count, width in shapes:
        ids = np.arange(first, first + count)
        batches.append({"x": np.repeat(ids[:, None], width, 1), "id": ids})
        first += count
    found = list(rebatched(batches, rows))
    assert [i for batch in found for i in batch["id"]] == list(range(first))
    wanted = [width for count, width in shapes for _ in range(count)]
    assert [batch["x"].shape[1] for batch in found for _ in batch["id"]] == wanted
    assert all((batch["x"] == batch["id"][:, None]).all() for batch in found)
    for batch, after in pairwise(found):
        assert row_count(batch) <= rows
        assert row_count(batch) == rows or batch["x"].shape[1] != after["x"].shape[1]


@pytest.mark.parametrize(
    ("rows", "sizes"), [(50, [25, 25]), (256, [16] * 16), (27, [25, 2]), (24, [24]), (4, [4]), (46, [23, 23])]
)
def test_calibration_is_cut_evenly_where_it_can_be(rows: int, sizes: list[int]) -> None:
    """A short batch at the end has every network compiled once more, for its shape alone."""
    found = TaskData(Data([{"x": np.zeros((rows, 2), np.float32)}]), batch_rows=25).calibration
    assert [row_count(batch) for batch in found] == sizes


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 9))
def test_a_split_keeps_its_targets_beside_its_rows(counts: list[int], rows: int) -> None:
    ends = np.cumsum(counts)
    batches = [
        ({"x": np.arange(end - count, end, dtype=np.float32)}, np.arange(end - count, end))
        for count, end in zip(counts, ends, strict=True)
    ]
    split: Split = TaskData(Data([{"x": X[:, 0]}], batches), rows).split("search")
    assert split.rows == len(split.targets) == ends[-1]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in split.batches]), split.targets)
