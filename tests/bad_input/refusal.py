"""How a refusal must look: exit code 2, one message of three lines at most, and nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mixq import cli


def search(files: Path, task: str = "Tiny", out: str = "out", trials: int = 1) -> list[str]:
    """A search that is fine but for what is added to it."""
    options = f"--space {files}/space.yaml --trials {trials} --study tiny --tracking none --quiet"
    return ["search", f"{files}/task.py:{task}", "--out", out, *options.split()]


def contents(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder but the study, whose SQLite file is tidied whenever it is opened."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if not path.name.startswith("study.db")
    }


def refusal(arguments: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What is said, where it is said as it must be and nothing is written in the current folder."""
    before = contents(Path.cwd())
    capfd.readouterr()
    try:
        code = cli.main(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    said, told = capfd.readouterr()
    assert (code, said) == (cli.BAD_INPUT, ""), told
    assert contents(Path.cwd()) == before
    check(told)
    return told


def check(told: str) -> None:
    assert told.startswith("mixq: ")
    assert told.endswith("\n")
    assert len(told.splitlines()) <= 3, told
    assert "Traceback" not in told
    assert "\x1b" not in told


def says(told: str, parts: Sequence[str]) -> bool:
    assert all(part in told for part in parts), told
    return True
