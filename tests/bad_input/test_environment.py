"""Where mixq runs: data that is missing, no temporary folder, variables that torchrun did not set."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.refusal import refusal, says, search

Set = Callable[[pytest.MonkeyPatch], None]
ETINYNET = str(Path(__file__).parents[2] / "experiments/etinynet/task.py:EtinyNet")

# The task (by default one that is fine), what is set, what the message must say.
ENVIRONMENTS: dict[str, tuple[str, Set, list[str]]] = {
    "MIXQ_DATA leads nowhere": (
        ETINYNET,
        lambda patch: patch.setenv("MIXQ_DATA", "/nowhere"),
        ["MIXQ_DATA: ", "/nowhere/imagenet does not exist", "set the environment variable MIXQ_DATA"],
    ),
    "no temporary folder": (
        "",
        lambda patch: patch.setattr(tempfile, "tempdir", "/proc"),
        ["no temporary folder can be made: No such file or directory (/proc/mixq-", "TMPDIR to a folder that you may"],
    ),
    "WORLD_SIZE is no number": (
        "",
        lambda patch: patch.setenv("WORLD_SIZE", "two"),
        ["WORLD_SIZE must be a whole number, got 'two'", "start mixq with torchrun"],
    ),
    "WORLD_SIZE alone": (
        "",
        lambda patch: patch.setenv("WORLD_SIZE", "2"),
        ["the processes cannot join", "RANK expected", "start mixq with torchrun, which sets"],
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_that_cannot_be_used(name: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task, change, told = ENVIRONMENTS[name]
    arguments = search(files)
    arguments[1] = task or arguments[1]
    with pytest.MonkeyPatch.context() as patch:  # pytest itself needs a temporary folder
        for variable in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(variable, raising=False)
        change(patch)
        said = refusal(arguments, capfd)
    assert says(said, told)
