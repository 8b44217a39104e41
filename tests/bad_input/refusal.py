"""How a refusal must look: exit code 2, one message of three lines at most, and nothing written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from mixq import cli

LARGE = 2**24  # bytes: a file of this size is known by its size


def search(files: Path, task: str = "Tiny", out: str = "out", trials: int = 1) -> list[str]:
    """A search that is fine but for what is added to it."""
    options = f"--space {files}/space.yaml --trials {trials} --study tiny --tracking none --quiet"
    return ["search", f"{files}/task.py:{task}", "--out", out, *options.split()]


def contents(folder: Path) -> dict[str, str]:
    """The hash of all that lies in a folder but the study, whose SQLite file is tidied whenever it is opened."""
    found = [p for p in folder.rglob("*") if not p.name.startswith("study.db") and "__pycache__" not in p.parts]
    return {str(path.relative_to(folder)): _hash(path) for path in found}


def _hash(path: Path) -> str:
    if not path.is_file():
        return "no file"
    size = path.stat().st_size
    return f"{size} bytes" if size > LARGE else hashlib.sha256(path.read_bytes()).hexdigest()


def everything() -> dict[Path, dict[str, str]]:
    """What lies in the current folder, in the user's, and in that of an earlier search."""
    here = Path.cwd()
    folders = [here, *here.parent.glob("files*"), *here.parent.glob("searched*")]
    return {folder: contents(folder) for folder in folders}


def refusal(arguments: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What is said, where it is said as it must be and nothing is written or lost."""
    before = everything()
    capfd.readouterr()
    try:
        code = cli.main(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    said, told = capfd.readouterr()
    assert (code, said) == (cli.BAD_INPUT, ""), told
    assert everything() == before
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
