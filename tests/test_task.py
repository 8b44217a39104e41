"""TASK on the command line: how a class is found, and what is said where it is not or is no complete Task."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixq.errors import InputError
from mixq.task import Task, instantiate, load_task
from tests.tiny import Tiny

SOURCE = """
from mixq import Task
from neighbor import NAME

class Whole(Task):
    primary = NAME

    def model(self):
        return "model.onnx"

    def calibration(self):
        return []

    def batches(self, split):
        return []

    def metrics(self, outputs, targets):
        return {}

class Incomplete(Task):
    primary = "top1"
    model = calibration = Whole.model

class Unnamed(Whole):
    primary = None

class Pairs(Whole):
    rows_per_sample = "2"

class NoPairs(Whole):
    rows_per_sample = 0

class Broken(Whole):
    def __init__(self):
        raise ConnectionError("no route\\nto the data")

class Leaves(Whole):
    def __init__(self):
        raise SystemExit("no data")

class Sideways(Whole):
    higher_is_better = "minimize"

class Wants(Whole):
    def __init__(self, path):
        pass

class Unlike:
    pass

def function():
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with task.py, what it imports, and a package that holds the same."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").touch()
    for path in (tmp_path / "task.py", package / "tasks.py"):
        path.write_text(SOURCE, encoding="utf-8")
    (tmp_path / "neighbor.py").write_text('NAME = "top1"\n', encoding="utf-8")
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("spec", ["task.py:Whole", "./task.py:Whole", "some_package.tasks:Whole"])
def test_a_class_is_found(spec: str, folder: Path) -> None:
    task = load_task(spec)
    assert isinstance(task, Task)
    assert (type(task).__name__, task.primary, task.rows_per_sample) == ("Whole", "top1", 1)


def test_a_file_is_found_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert type(load_task(f"{folder}/task.py:Whole")).__name__ == "Whole"


def test_files_of_one_name_do_not_mix(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "task.py").write_text(SOURCE.replace("model.onnx", "other.onnx"), encoding="utf-8")
    tasks = [load_task(f"{path}/task.py:Whole") for path in (folder, other, folder)]
    assert [task.model() for task in tasks] == ["model.onnx", "other.onnx", "model.onnx"]


def test_what_is_optional_has_a_default(folder: Path) -> None:
    task = load_task("task.py:Whole")
    assert list(task.training()) == list(task.calibration())
    assert task.corruptions() == {}


ALL = "Whole, Incomplete, Unnamed, Pairs, NoPairs, Broken, Leaves, Sideways, Wants"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        *((spec, ["TASK must be file.py:Class or package.module:Class", repr(spec)]) for spec in ("", "task.py", ":A")),
        ("task.py:", ["TASK must be file.py:Class"]),
        ("missing.py:Whole", ["there is no file missing.py", "TASK is file.py:Class"]),
        ("some_package.py:Whole", ["there is no file some_package.py"]),
        ("task.py:Missing", ["task.py has no class Missing", f"its tasks: {ALL}"]),
        ("task.py:function", ["task.py has no class function"]),
        ("json:Whole", ["json has no class Whole; its tasks: none"]),
        ("no_such_package.tasks:Whole", ["No module named 'no_such_package'", "install it, or run mixq in the folder"]),
        ("some_package.missing:Whole", ["No module named 'some_package.missing'"]),
        ("task.py:Unlike", ["Unlike is not a mixq.Task", "write `class Unlike(mixq.Task):`"]),
        ("task.py:Incomplete", ["Incomplete lacks the methods batches, metrics", "define them as in mixq.Task"]),
        ("task.py:Unnamed", ["Unnamed.primary must name the metric to protect", 'primary = "top1"']),
        ("task.py:Pairs", ["Pairs.rows_per_sample must be a whole number of at least 1", "got '2'"]),
        ("task.py:NoPairs", ["NoPairs.rows_per_sample must be a whole number of at least 1", "got 0"]),
        (
            "task.py:Sideways",
            ["Sideways.higher_is_better must be True or False", "got 'minimize'", "False where a lower"],
        ),
        ("task.py:Broken", ["Broken(), called without arguments, raised ConnectionError: no route (task.py line "]),
        ("task.py:Leaves", ["Leaves()", "raised SystemExit: no data"]),
        ("task.py:Wants", ["Wants()", "without arguments", "missing 1 required positional argument: 'path'"]),
    ],
)
def test_what_cannot_be_loaded_is_explained(spec: str, told: list[str], folder: Path) -> None:
    with pytest.raises(InputError) as error:
        load_task(spec)
    said = str(error.value)
    assert "\n" not in said
    assert all(part in said for part in told), said


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(:\n", r"importing .*broken\.py raised SyntaxError: invalid syntax \(broken\.py, line 1\)"),
        ("\n\nraise ValueError('no weights')\n", r"raised ValueError: no weights \(broken\.py line 3\)"),
        ("import json\n\njson.loads('x')\n", r"raised JSONDecodeError: .* \(broken\.py line 3\)"),
        ("raise SystemExit(2)\n", r"raised SystemExit: 2 \(broken\.py line 1\)"),
        ("import no_such_package\n", "No module named 'no_such_package'; install it"),
        ("\x00", "broken"),
    ],
)
def test_a_file_that_cannot_be_imported_is_explained(source: str, told: str, folder: Path) -> None:
    (folder / "broken.py").write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        load_task("broken.py:Whole")


def test_what_a_task_says_itself_is_not_wrapped(folder: Path) -> None:
    source = SOURCE.replace('ConnectionError("no route\\nto the data")', 'InputError("set DATA")')
    (folder / "task.py").write_text(f"from mixq import InputError\n{source}", encoding="utf-8")
    with pytest.raises(InputError, match=r"^set DATA$"):
        load_task("task.py:Broken")


def test_a_class_at_hand_is_checked_alike() -> None:
    assert isinstance(instantiate(Tiny), Tiny)
    with pytest.raises(InputError, match=r"int is not a mixq\.Task"):
        instantiate(int)
