"""The probe survives its file, bit by bit, and refuses files that are something else."""

from __future__ import annotations

import io

import numpy as np
import pytest

from mixq.errors import InputError
from mixq.probe import Probe, record
from mixq.task import Array, Inputs, Outputs

INPUTS: Inputs = {
    "ids/a b": np.arange(6, dtype=np.int64).reshape(3, 2),
    "file": np.array([[0.0], [-0.0], [1e-45]], np.float32),
}


def run(inputs: Inputs) -> Outputs:
    assert {len(value) for value in inputs.values()} == {1}, "each row by itself"
    return {"sum": inputs["ids/a b"].sum(1) + np.float32(np.nan), "same": inputs["file"]}


def npz(**arrays: Array) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def test_the_file_holds_every_bit() -> None:
    probe = record(run, INPUTS)
    found = Probe.from_bytes(probe.to_bytes())
    for have, want in ((found.inputs, probe.inputs), (found.outputs, probe.outputs)):
        assert have.keys() == want.keys()
        for name, value in want.items():
            assert (have[name].dtype, have[name].shape) == (value.dtype, value.shape)
            assert have[name].tobytes() == value.tobytes()
    assert found.rows == 3
    assert found.example["ids/a b"].tolist() == [[0, 1]]


def test_equal_probes_give_equal_files() -> None:
    assert record(run, INPUTS).to_bytes() == record(run, INPUTS).to_bytes()


WRONG = {
    "nothing": (b"", "not an .npz file"),
    "text": (b"no archive at all", "not an .npz file"),
    "cut off": (record(run, INPUTS).to_bytes()[:-40], "not an .npz file"),
    "one array": (b"\x93NUMPY" + bytes(40), "not an .npz file"),
    "pickles": (npz(**{"input/x": np.array([{}], object)}), "not an .npz file"),
    "no output": (npz(**{"input/x": np.zeros(2)}), "at least one input and one output"),
    "other rows": (npz(**{"input/x": np.zeros(2), "output/y": np.zeros(3)}), r"have \[2, 3\] rows"),
    "no rows": (npz(**{"input/x": np.zeros(0), "output/y": np.zeros(())}), r"have \[0\] rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_refused(name: str) -> None:
    data, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        Probe.from_bytes(data)
