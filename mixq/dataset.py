"""The data of a Task, read once, checked, and cut into batches of mixq's own size."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mixq.corruptions import Corruption, image_corruptions
from mixq.dynamic_axes import DynamicAxes, checked_axes, varied
from mixq.errors import InputError, first_line, raised
from mixq.task import Array, Inputs, Outputs, Task, check_declared

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


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Batches of inputs, and where the Task gives them the targets of each."""

    batches: tuple[Inputs, ...]
    targets: tuple[Array, ...] | None = None

    def fingerprint(self) -> str:
        """16 digits of the SHA-256 of all of it."""
        return _digest((*self.batches, *({"targets": target} for target in self.targets or ())))


class TaskData:
    """What a Task yields, each part read at most once. Raises InputError that names the method at fault."""

    def __init__(self, task: Task, batch_rows: int = 25) -> None:
        check_declared(task)  # a Task may be handed over as an instance that nothing has looked at yet
        self.task = task
        self.batch_rows = batch_rows
        self._splits: dict[str, Split] = {}

    @cached_property
    def calibration(self) -> tuple[Inputs, ...]:
        found = list(self._inputs("calibration"))
        self._check_sizes(self._name("calibration"), found, found[0])
        return tuple(rebatched(found, _even(sum(map(row_count, found)), self.batch_rows)))

    @cached_property
    def training(self) -> TrainingData:
        """As the Task cuts them: the batch size of training is the user's."""
        method = self._name("training")
        items = list(self._call("training"))
        pairs = [item for item in items if isinstance(item, tuple)]
        if not pairs:
            return TrainingData(self._like_calibration(method, items))
        if len(pairs) < len(items) or any(len(pair) != 2 for pair in pairs):
            raise InputError(f"{method} must yield inputs, or pairs (inputs, targets), the same for every batch")
        inputs = self._like_calibration(method, [pair[0] for pair in pairs])
        targets = tuple(_target_array(method, pair[1]) for pair in pairs)
        for batch, target in zip(inputs, targets, strict=True):
            _check_targets(method, row_count(batch), target, targets[0])
        return TrainingData(inputs, targets)

    @property
    def dynamic_axes(self) -> DynamicAxes:
        """The Task's, checked."""
        return checked_axes(self._name("dynamic_axes"), self.task.dynamic_axes, self.example)

    @property
    def example(self) -> Inputs:
        """The first calibration row of every input."""
        return {name: value[:1] for name, value in self.calibration[0].items()}

    def model(self) -> Any:
        """What the Task's `model` returns."""
        return _guarded(self._name("model"), self.task.model)

    def corruptions(self) -> Mapping[str, Corruption]:
        """The Task's own, or else those for images; each checked, whenever it is called, to keep names and rows."""
        method = self._name("corruptions")
        found = _guarded(method, self.task.corruptions)
        if not isinstance(found, Mapping):
            raise InputError(f"{method} must return a dict name → function of inputs, got {type(found).__name__}")
        own = {str(name): _checked_corruption(f"{method}: {name!r}", corrupt) for name, corrupt in found.items()}
        return own or image_corruptions(self.example)

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
        method, targets = self._name("metrics"), split.targets
        for name, value in outputs.items():
            if len(value) != len(targets):
                raise InputError(
                    f"the model's output {name!r} has {len(value)} rows but {self._name('batches', split.name)} gave "
                    f"{len(targets)} targets; the model must keep the batch axis first"
                )
        found = _guarded(method, lambda: self.task.metrics(outputs, targets))
        if not isinstance(found, Mapping):
            raise InputError(f"{method} must return a dict name → float, got {type(found).__name__}")
        checked = {str(name): _metric_value(method, name, value) for name, value in found.items()}
        if self.task.primary not in checked:
            known = ", ".join(checked) or "nothing"
            raise InputError(
                f"{method} returned {known}, without the primary metric {self.task.primary!r}; return it, or set "
                "`primary` to one of those"
            )
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
        method, inputs, targets = self._name("batches", name), [], []
        for item in self._call("batches", name):
            if not (isinstance(item, tuple | list) and len(item) == 2):
                raise InputError(f"{method} must yield pairs (inputs, targets), got {type(item).__name__}")
            inputs.append(item[0])
            targets.append(_target_array(method, item[1]))
        checked = self._like_calibration(method, inputs)
        for batch, target in zip(checked, targets, strict=True):
            _check_targets(method, row_count(batch), target, targets[0])
        split = Split(name, tuple(rebatched(checked, self.batch_rows)), np.concatenate(targets))
        if split.rows % self.task.rows_per_sample:
            raise InputError(
                f"{method} gave {split.rows} rows, which rows_per_sample = {self.task.rows_per_sample} does not "
                "divide; leave out the rows of the last, incomplete sample"
            )
        return split

    def _inputs(self, method: str) -> Iterator[Inputs]:
        return _checked_inputs(self._call(method), self._name(method))

    def _like_calibration(self, method: str, batches: Iterable[Any]) -> tuple[Inputs, ...]:
        """The batches, checked to have calibration's names and types, and its sizes but on the dynamic axes."""
        found = tuple(_checked_inputs(batches, method, _types(self.example)))
        self._check_sizes(method, found, self.example)
        return found

    def _check_sizes(self, method: str, batches: Iterable[Inputs], first: Inputs) -> None:
        axes = checked_axes(self._name("dynamic_axes"), self.task.dynamic_axes, first)
        for batch in batches:
            name = varied(batch, axes, first)
            if name is not None:
                raise InputError(
                    f"{method}: rows of the input {name!r} have the shape {batch[name].shape[1:]}, calibration's first "
                    f"{first[name].shape[1:]}; only axes that the Task's dynamic_axes names may vary in size, e.g. "
                    f'dynamic_axes = {{"{name}": (1,)}}'
                )

    def _call(self, method: str, *arguments: str) -> Iterator[Any]:
        name = self._name(method, *arguments)
        found: Any = _guarded(name, lambda: getattr(self.task, method)(*arguments))
        if not isinstance(found, Iterable):
            raise InputError(f"{name} must yield batches, got {type(found).__name__}; use `yield`")
        return _iterated(name, found)

    def _name(self, method: str, *arguments: str) -> str:
        """How messages call a method of the Task: "Tiny.batches('search')"."""
        return f"{type(self.task).__name__}.{method}" + (f"({', '.join(map(repr, arguments))})" if arguments else "")


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


def _even(rows: int, most: int) -> int:
    """Rows of a batch, `most` or somewhat less, such that no short one is left: one set of shapes is compiled."""
    return next((size for size in range(most, most // 2, -1) if rows % size == 0), most)


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


def _types(batch: Inputs) -> dict[str, Any]:
    return {name: value.dtype for name, value in batch.items()}


def _target_array(method: str, value: Any) -> Array:
    try:
        found = np.asarray(value)
    except Exception as error:  # whatever a list of unequal rows or a tensor of another library raises
        raise InputError(f"{method}: the targets are no array: {first_line(error)}; yield one array a batch") from error
    if found.dtype.kind == "O":
        raise InputError(f"{method}: the targets are Python objects; yield an array of numbers or strings")
    return found


def _check_targets(method: str, rows: int, target: Array, first: Array) -> None:
    if target.ndim == 0 or len(target) != rows:
        raise InputError(
            f"{method}: a batch of {rows} rows came with targets of shape {target.shape}; yield one target a row"
        )
    if target.shape[1:] != first.shape[1:]:
        raise InputError(
            f"{method}: targets of shape {target.shape} came after {first.shape}; all but the first axis must be equal"
        )


def _checked_corruption(name: str, corrupt: Corruption) -> Corruption:
    def checked(inputs: Inputs) -> Inputs:
        found: Inputs = _guarded(name, lambda: corrupt(inputs))
        _check_batch(name, found)
        if _types(found) != _types(inputs) or row_count(found) != row_count(inputs):
            raise InputError(f"{name} changed the inputs' names, types or rows; it must keep them")
        return found

    return checked


def _checked_inputs(batches: Iterable[Any], method: str, wanted: Mapping[str, Any] | None = None) -> Iterator[Inputs]:
    """The batches as dicts. `wanted`: the type of every input by name, by default that of the first batch."""
    empty = True
    for batch in batches:
        empty = False
        _check_batch(method, batch)
        wanted = wanted or _types(batch)
        if _types(batch) != wanted:
            raise InputError(
                f"{method}: the inputs are {_listed(_types(batch))}, before they were {_listed(wanted)}; names and "
                "types must be those of calibration in every batch"
            )
        yield dict(batch)
    if empty:
        raise InputError(f"{method} yields nothing; it must yield at least one batch of inputs")


def _check_batch(method: str, batch: Any) -> None:
    if not isinstance(batch, Mapping) or not batch:
        raise InputError(f"{method} must yield dicts name → numpy array, got {type(batch).__name__}")
    for name, value in batch.items():
        _check_array(method, name, value)
    rows = {len(value) for value in batch.values()}
    if len(rows) > 1 or rows == {0}:
        raise InputError(f"{method}: the inputs of one batch have {sorted(rows)} rows; all need the same, at least 1")


def _listed(types: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in types.items())


def _check_array(method: str, name: Any, value: Any) -> None:
    if not isinstance(name, str):
        raise InputError(f"{method}: an input is named {name!r}; names are strings, as the model has them")
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{method}: the input {name!r} is a {type(value).__name__}, not a numpy array; "
            "convert it, e.g. with tensor.numpy()"
        )
    if value.ndim == 0:
        raise InputError(f"{method}: the input {name!r} has no batch axis; put the batch on the first axis")
    if value.dtype.kind not in "fiub":
        raise InputError(f"{method}: the input {name!r} is of type {value.dtype}; a model takes numbers")
    if value.dtype == np.float64:
        raise InputError(f"{method}: the input {name!r} is float64; convert it with .astype(np.float32)")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputError(f"{method}: the input {name!r} holds NaN or infinite values; clean the data")


def _metric_value(method: str, name: object, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise InputError(f"{method}: {name!r} is a {type(value).__name__}, not a number; return float(...)")
    if not math.isfinite(value):
        raise InputError(f"{method}: {name!r} is {value}; a metric must be a finite number")
    return float(value)


def _guarded(method: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(method, error) from error


def _iterated(method: str, batches: Iterable[Any]) -> Iterator[Any]:
    iterator = iter(batches)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise raised(method, error) from error
        yield item
