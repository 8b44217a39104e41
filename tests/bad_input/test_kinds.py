"""Every kind of bad input has its cases, and they are many; each test of them goes through `refusal`."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.bad_input.test_commands import COMMANDS, CONFIGS, OPTIONS
from tests.bad_input.test_environment import ENVIRONMENTS
from tests.bad_input.test_spaces import SPACES
from tests.bad_input.test_tasks import SPECS
from tests.bad_input.user_files import OTHERS, TASKS

MODELS = ("def model", "dynamic_axes")
DATA = ("def calibration", "def batches", "def metrics", "def corruptions")
STORES, FOLDERS = ("--storage", "--tracking", "--study"), ("--out",)


def of(table: dict[str, tuple[str, list[str]]], starts: tuple[str, ...]) -> set[str]:
    return {name for name, (body, _) in table.items() if any(start in body for start in starts)}


KINDS: dict[str, set[str]] = {
    "task": {*SPECS, *(set(TASKS) - of(TASKS, (*MODELS, *DATA)))},
    "model": of(TASKS, MODELS),
    "data": of(TASKS, DATA),
    "space": set(SPACES),
    "config": set(CONFIGS),
    "storage": {name for name in OPTIONS if name.startswith(STORES)} | set(OTHERS),
    "folders": {name for name in (*OPTIONS, *COMMANDS) if any(option in name for option in FOLDERS)},
    "options": {*OPTIONS, *COMMANDS},
    "environment": set(ENVIRONMENTS),
}


def test_there_are_sixty_cases_and_some_of_every_kind() -> None:
    assert {kind: len(cases) for kind, cases in KINDS.items() if len(cases) < 4} == {}
    assert len(set().union(*KINDS.values())) >= 150


def test_every_case_is_refused_by_the_same_check() -> None:
    """Each test over a table says what `refusal` returns: exit code 2, three lines, no traceback, nothing written."""
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and "cannot_be" in node.name:
                assert "refusal(" in ast.unparse(node), f"{path.name}: {node.name}"
