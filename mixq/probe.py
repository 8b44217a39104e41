"""Probe: a few rows of input and what the runtime gave on them, by which a model is known again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mixq.errors import InputError
from mixq.graph import Run
from mixq.task import Array, Inputs, Outputs

_INPUT, _OUTPUT = "input/", "output/"


@dataclass(frozen=True, eq=False)
class Probe:
    """Inputs and outputs by name, the rows on the first axis; each row was run by itself (batch 1)."""

    inputs: Inputs
    outputs: Outputs

    def __post_init__(self) -> None:
        arrays = [*self.inputs.values(), *self.outputs.values()]
        if not self.inputs or not self.outputs:
            raise InputError("a probe needs at least one input and one output")
        counts = {len(value) if value.ndim else 0 for value in arrays}
        if len(counts) > 1 or counts == {0}:
            raise InputError(f"the arrays of a probe have {sorted(counts)} rows; all need the same number, at least 1")

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def example(self) -> Inputs:
        """The first row of every input."""
        return next(_rows(self.inputs))

    def to_bytes(self) -> bytes:
        """As an .npz file without pickles."""
        arrays = {_INPUT + name: value for name, value in self.inputs.items()}
        arrays |= {_OUTPUT + name: value for name, value in self.outputs.items()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Probe:
        """The inverse of `to_bytes`. Raises InputError for anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {str(key): np.asarray(archive[key]) for key in archive.files}
        except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
            raise InputError(f"the probe is not an .npz file without pickles: {error}; export again") from error
        return cls(_named(arrays, _INPUT), _named(arrays, _OUTPUT))


def record(run: Run, inputs: Inputs) -> Probe:
    """The probe of `inputs`."""
    return Probe(inputs, run_rows(run, inputs))


def run_rows(run: Run, inputs: Inputs) -> Outputs:
    """Outputs by name, each row of `inputs` run by itself."""
    found: dict[str, list[Array]] = {}
    for row in _rows(inputs):
        for name, value in run(row).items():
            found.setdefault(name, []).append(value)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _rows(inputs: Inputs) -> Iterator[Inputs]:
    for row in range(len(next(iter(inputs.values())))):
        yield {name: value[row : row + 1] for name, value in inputs.items()}


def _named(arrays: Inputs, prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
