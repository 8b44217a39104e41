"""Models that are almost right are captured or refused; no exception but InputError, no death of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK, LONG = 60, 1000


def outcomes(count: int) -> list[str]:
    command = [sys.executable, "-m", "tests.fuzz.models", "0", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]}: {done.stderr[-3000:]}"
    assert len(lines) == count
    return lines


@pytest.mark.slow
def test_models_that_are_almost_right() -> None:
    found = outcomes(QUICK)
    assert any("captured" in line for line in found)
    assert any("refused" in line for line in found)


@pytest.mark.slow
def test_a_thousand_of_them() -> None:
    outcomes(LONG)
