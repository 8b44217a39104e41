"""What a program reads on stdout: events, and nothing that others print there."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

from mixq.events import events_on_stdout

PRINTS = """
import ctypes, os
from mixq.events import events_on_stdout
print("before")
with events_on_stdout() as events:
    print("python")
    os.write(1, b"system call\\n")
    ctypes.CDLL(None).puts(b"buffered")
    events("trial", {"drop": float("nan"), "name": "é"})
print("after")
"""


def test_native_libraries_print_beside_the_events() -> None:
    """Into a pipe, where C keeps what it prints until its buffer is full."""
    found = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, check=True)
    before, event, after = found.stdout.decode("utf-8").splitlines()
    assert (before, after) == ("before", "after")
    assert json.loads(event) == {"event": "trial", "drop": None, "name": "é"}
    assert sorted(found.stderr.decode("utf-8").splitlines()) == ["buffered", "python", "system call"]


def test_events_reach_what_stands_in_for_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with events_on_stdout() as events:
        ctypes.CDLL(None).puts(b"native")
        events("trial", {"number": 1})
    assert json.loads(capsys.readouterr().out) == {"event": "trial", "number": 1}


def test_stdout_is_as_before_whatever_happens(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="stop"), events_on_stdout():
        raise ValueError("stop")
    os.write(1, b"as before\n")
    assert capfd.readouterr().out == "as before\n"
