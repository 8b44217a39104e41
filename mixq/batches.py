"""Batches through an executable, filled up to one size: only one set of shapes is ever compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mixq.dataset import row_count
from mixq.errors import InputError
from mixq.runtimes import Executable
from mixq.task import Inputs, Outputs


def run_batch(executable: Executable, batch: Inputs, rows: int) -> Outputs:
    """Outputs of a batch of at most `rows` rows; a shorter one is filled up by repetition and cut again."""
    count = row_count(batch)
    return {name: value[:count] for name, value in executable.run(filled(batch, rows)).items()}


def run_batches(executable: Executable, batches: Iterable[Inputs], rows: int) -> Outputs:
    """Outputs of all batches, concatenated."""
    return concatenated([run_batch(executable, batch, rows) for batch in batches])


def filled(batch: Inputs, rows: int) -> Inputs:
    """The batch with `rows` rows, its own ones repeated where it is shorter."""
    if row_count(batch) == rows:
        return batch
    return {name: np.resize(value, (rows, *value.shape[1:])) for name, value in batch.items()}


def concatenated(parts: Sequence[Outputs]) -> Outputs:
    """All rows of all parts, in order; {} for no parts. Raises InputError where a row's shape differs."""
    for name in parts[0] if parts else ():
        shapes = dict.fromkeys(part[name].shape[1:] for part in parts)
        if len(shapes) > 1:
            raise InputError(
                f"the model's output {name!r} has rows of the shapes {', '.join(map(str, shapes))}; where inputs vary "
                "in size, outputs must not: let the model pool, pad or crop them to one"
            )
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
