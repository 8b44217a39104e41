"""The data of a Task, read once, checked, and cut into batches of mixq's own size."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mixq.errors import InputError
from mixq.task import Array, Inputs, Outputs, Task

SPLITS = ("search", "holdout")


@dataclass(frozen=True, eq=False)
class Split:
    """Batches of inputs in order, and the targets of all their rows."""

    name: str
    batches: tuple[Inputs, ...]
    targets: Array

    @property
    def rows(self) -> int:
        return sum(row_count(batch) for batch in self.batches)


class TaskData:
    """What a Task yields, each part read at most once. Raises InputError that names the method at fault."""

    def __init__(self, task: Task, batch_rows: int = 25) -> None:
        self.task = task
        self.batch_rows = batch_rows
        self._splits: dict[str, Split] = {}

    @cached_property
    def calibration(self) -> tuple[Inputs, ...]:
        return self._inputs("calibration")

    @cached_property
    def training(self) -> tuple[Inputs, ...]:
        """As the Task cuts them: the batch size of training is the user's."""
        return tuple(_checked_inputs(self._call("training"), "training"))

    @property
    def example(self) -> Inputs:
        """The first calibration row of every input."""
        return {name: value[:1] for name, value in self.calibration[0].items()}

    def split(self, name: str) -> Split:
        if name not in self._splits:
            self._splits[name] = self._read_split(name)
        return self._splits[name]

    def calibration_fingerprint(self) -> str:
        """16 digits of the SHA-256 of the calibration inputs."""
        return _digest(self.calibration)

    def search_fingerprint(self) -> str:
        """16 digits of the SHA-256 of the search split: what a study's numbers come from."""
        search = self.split("search")
        return _digest((*search.batches, {"targets": search.targets}))

    def metrics(self, outputs: Outputs, split: Split) -> dict[str, float]:
        """The Task's metrics as floats, checked to hold the primary one and no NaN."""
        cls, targets = type(self.task).__name__, split.targets
        for name, value in outputs.items():
            if len(value) != len(targets):
                raise InputError(
                    f"the model's output {name!r} has {len(value)} rows but {cls}.batches({split.name!r}) gave "
                    f"{len(targets)} targets; yield one target a row"
                )
        found = _guarded(cls, "metrics", lambda: self.task.metrics(outputs, targets))
        if not isinstance(found, Mapping):
            raise InputError(f"{cls}.metrics must return a dict name → float, got {type(found).__name__}")
        checked = {str(name): _metric_value(cls, name, value) for name, value in found.items()}
        if self.task.primary not in checked:
            known = ", ".join(checked) or "none"
            raise InputError(f"{cls}.metrics returned {known}, without the primary metric {self.task.primary!r}")
        return checked

    def warn_if_splits_are_equal(self) -> bool:
        """Warn where search and holdout hold the same data: then the report on the winner is not independent."""
        search, holdout = self.split("search"), self.split("holdout")
        equal = search.rows == holdout.rows and _same(search.batches, holdout.batches)
        if equal:
            warnings.warn(
                f"{type(self.task).__name__}.batches yields the same data for 'search' and 'holdout': the drop "
                "reported for the best configuration is the one that it was picked by, and too optimistic",
                UserWarning,
                stacklevel=2,
            )
        return equal

    def _read_split(self, name: str) -> Split:
        cls = type(self.task).__name__
        inputs, targets = [], []
        for item in _iterated(cls, f"batches({name!r})", self._call("batches", name)):
            if not (isinstance(item, tuple | list) and len(item) == 2):
                raise InputError(f"{cls}.batches({name!r}) must yield pairs (inputs, targets)")
            inputs.append(item[0])
            targets.append(np.asarray(item[1]))
        checked = list(_checked_inputs(inputs, f"batches({name!r})"))
        for batch, target in zip(checked, targets, strict=True):
            if target.ndim == 0 or len(target) != row_count(batch):
                raise InputError(
                    f"{cls}.batches({name!r}): a batch of {row_count(batch)} rows came with targets of shape "
                    f"{target.shape}; yield one target a row"
                )
        split = Split(name, tuple(rebatched(checked, self.batch_rows)), np.concatenate(targets))
        if split.rows % self.task.rows_per_sample:
            raise InputError(
                f"{cls}.batches({name!r}) gave {split.rows} rows, which rows_per_sample = "
                f"{self.task.rows_per_sample} does not divide"
            )
        return split

    def _inputs(self, method: str) -> tuple[Inputs, ...]:
        return tuple(rebatched(list(_checked_inputs(self._call(method), method)), self.batch_rows))

    def _call(self, method: str, *arguments: str) -> Iterable[Any]:
        cls = type(self.task).__name__
        found: Any = _guarded(cls, method, lambda: getattr(self.task, method)(*arguments))
        if not isinstance(found, Iterable):
            raise InputError(f"{cls}.{method} must yield batches, got {type(found).__name__}; use `yield`")
        return _iterated(cls, method, found)


def row_count(batch: Inputs) -> int:
    return len(next(iter(batch.values())))


def _digest(batches: Iterable[Inputs]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.items()):
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def rebatched(batches: Sequence[Inputs], rows: int) -> Iterator[Inputs]:
    """The same rows in the same order, `rows` to a batch wherever neighbors have equal shapes per row."""
    run: list[Inputs] = []
    for batch in batches:
        if run and _row_shapes(batch) != _row_shapes(run[0]):
            yield from _cut(run, rows)
            run = []
        run.append(batch)
    if run:
        yield from _cut(run, rows)


def _cut(run: Sequence[Inputs], rows: int) -> Iterator[Inputs]:
    merged = {name: np.concatenate([batch[name] for batch in run]) for name in run[0]}
    for start in range(0, row_count(merged), rows):
        yield {name: value[start : start + rows] for name, value in merged.items()}


def _row_shapes(batch: Inputs) -> dict[str, tuple[int, ...]]:
    return {name: value.shape[1:] for name, value in batch.items()}


def _same(left: Sequence[Inputs], right: Sequence[Inputs]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(left, right, strict=True)
    )


def _checked_inputs(batches: Iterable[Any], method: str) -> Iterator[Inputs]:
    names: set[str] | None = None
    for batch in batches:
        if not isinstance(batch, Mapping) or not batch:
            raise InputError(f"{method} must yield dicts name → numpy array, got {type(batch).__name__}")
        for name, value in batch.items():
            _check_array(method, name, value)
        rows = {len(value) for value in batch.values()}
        if len(rows) > 1 or rows == {0}:
            raise InputError(
                f"{method}: the inputs of one batch have {sorted(rows)} rows; all need the same, at least 1"
            )
        names = names or set(batch)
        if set(batch) != names:
            raise InputError(f"{method}: a batch has the inputs {sorted(batch)}, an earlier one {sorted(names)}")
        yield dict(batch)
    if names is None:
        raise InputError(f"{method} yields nothing; it must yield at least one batch of inputs")


def _check_array(method: str, name: str, value: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{method}: the input {name!r} is a {type(value).__name__}, not a numpy array; "
            "convert it, e.g. with tensor.numpy()"
        )
    if value.ndim == 0:
        raise InputError(f"{method}: the input {name!r} has no batch axis; put the batch on the first axis")
    if value.dtype == np.float64:
        raise InputError(f"{method}: the input {name!r} is float64; convert it with .astype(np.float32)")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputError(f"{method}: the input {name!r} holds NaN or infinite values; clean the data")


def _metric_value(cls: str, name: object, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise InputError(f"{cls}.metrics: {name!r} is a {type(value).__name__}, not a number; return float(...)")
    if not math.isfinite(value):
        raise InputError(f"{cls}.metrics: {name!r} is {value}; a metric must be a finite number")
    return float(value)


def _guarded(cls: str, method: str, call: Any) -> Any:
    try:
        return call()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{cls}.{method} raised {type(error).__name__}: {error}") from error


def _iterated(cls: str, method: str, batches: Iterable[Any]) -> Iterator[Any]:
    iterator = iter(batches)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{cls}.{method} raised {type(error).__name__}: {error}") from error
        yield item
