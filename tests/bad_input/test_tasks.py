"""Tasks that cannot be used or found, through the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.refusal import refusal, says, search
from tests.bad_input.user_files import TASKS

SPECS = {
    "task.py": ["TASK must be file.py:Class or package.module:Class", "'task.py'"],
    "missing.py:Tiny": ["there is no file missing.py", "TASK is file.py:Class"],
    "{files}/task.py:Missing": ["has no class Missing", "its tasks: Tiny, Incomplete, InTrainingMode"],
    "{files}/task.py:NoTask": ["NoTask is not a mixq.Task", "class NoTask(mixq.Task)"],
    "{files}/task.py:Incomplete": ["lacks the methods batches, calibration, metrics, model", "define them"],
    "{files}/syntax.py:Tiny": ["syntax.py raised SyntaxError", "line 2"],
    "{files}/imports.py:Tiny": ["No module named 'no_such_package'", "install it"],
    "no_such_package.module:Tiny": ["No module named 'no_such_package'", "or run mixq in the folder that holds it"],
}


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_that_cannot_be_used(name: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert says(refusal(search(files, name), capfd), TASKS[name][1])


@pytest.mark.parametrize("spec", SPECS)
def test_a_task_that_cannot_be_found(spec: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = search(files)
    arguments[1] = spec.format(files=files)
    assert says(refusal(arguments, capfd), SPECS[spec])
