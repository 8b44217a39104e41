"""Dynamic axes: the axes of inputs, beside the batch, whose sizes vary from batch to batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixq.errors import InputError
from mixq.task import Inputs

DynamicAxes = Mapping[str, tuple[int, ...]]
"""Input name → axes, each from 1 (0 is the batch) up to the input's rank less 1."""


def checked_axes(name: str, axes: object, example: Inputs) -> DynamicAxes:
    """`axes`, which the user calls `name`, as the inputs of `example` can have them. Raises InputError else."""
    if not isinstance(axes, Mapping):
        raise InputError(f'{name} must be a dict input → axes, e.g. {{"image": (2, 3)}}, got {axes!r}')
    unknown = [key for key in axes if key not in example]
    if unknown:
        raise InputError(f"{name} names the input {unknown[0]!r}; calibration yields {', '.join(sorted(example))}")
    return {str(key): _axes_of(f"{name}[{key!r}]", found, example[key].ndim) for key, found in axes.items()}


def _axes_of(name: str, axes: object, rank: int) -> tuple[int, ...]:
    if not isinstance(axes, Sequence) or isinstance(axes, str | bytes):
        raise InputError(f"{name} must list axes, e.g. (2, 3), got {axes!r}")
    for axis in axes:
        if not isinstance(axis, int) or isinstance(axis, bool) or not 1 <= axis < rank:
            raise InputError(
                f"{name} holds {axis!r}; an axis is a whole number from 1 to {rank - 1}, for the input has {rank} "
                "axes, of which 0 is the batch and always dynamic"
            )
    return tuple(sorted(set(axes)))


def varied(batch: Inputs, axes: DynamicAxes, example: Inputs) -> str | None:
    """An input of `batch` whose size differs from that in `example` on an axis that is not dynamic; None for none."""
    for name, value in batch.items():
        fixed = [axis for axis in range(1, value.ndim) if axis not in axes.get(name, ())]
        if value.ndim != example[name].ndim or any(value.shape[a] != example[name].shape[a] for a in fixed):
            return name
    return None


def doubled(example: Inputs, axes: DynamicAxes) -> Inputs:
    """`example` with every dynamic axis twice as long: the same values again, so ids and masks stay valid ones."""
    found = dict(example)
    for name, dynamic in axes.items():
        for axis in dynamic:
            found[name] = np.concatenate([found[name], found[name]], axis)
    return found


def halved(example: Inputs, axes: DynamicAxes) -> Inputs:
    """`example` with the first half, at least 1, of every dynamic axis."""
    found = dict(example)
    for name, dynamic in axes.items():
        for axis in dynamic:
            found[name] = np.take(found[name], range(max(1, found[name].shape[axis] // 2)), axis)
    return found
