"""Turns: between real processes, whose locks die with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixq import machine
from mixq.turns import LOCKS, Turns

ROOT = Path(__file__).parents[1]
HOLDER = """
import os, sys
from pathlib import Path

if len(sys.argv) > 3:
    os.sched_setaffinity(0, {int(sys.argv[3])})
from mixq.turns import Turns

with getattr(Turns(Path(sys.argv[1])), sys.argv[2])():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path, kind: str, *core: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a turn until it is killed, or the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), kind, *core],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("theirs", "ours", "alone"), [("working", "timing", False), ("timing", "timing", False), (None, "timing", True)]
)
def test_who_times_is_told_whether_it_is_alone(tmp_path: Path, theirs: str | None, ours: str, alone: bool) -> None:
    turns = Turns(tmp_path, longest_wait_s=0.05)
    if theirs is None:
        with turns.timing() as found:
            assert found == alone
        return
    with held(tmp_path, theirs), turns.timing() as found:
        assert found == alone


def test_two_may_work_at_once(tmp_path: Path) -> None:
    with held(tmp_path, "working"), Turns(tmp_path, longest_wait_s=60).working():
        pass


@pytest.mark.parametrize("theirs", ["working", "timing"])
def test_the_turn_of_a_killed_process_is_over(tmp_path: Path, theirs: str) -> None:
    with held(tmp_path, theirs) as process:
        process.send_signal(signal.SIGKILL)
        with Turns(tmp_path, longest_wait_s=60).timing() as alone:
            assert alone


@pytest.mark.skipif(machine.cores() < 2, reason="needs two cores")
@pytest.mark.parametrize(("theirs", "alone"), [("working", True), ("timing", False)])
def test_on_other_cores_one_may_work_but_not_time(tmp_path: Path, theirs: str, alone: bool) -> None:
    before = os.sched_getaffinity(0)
    first, last = min(before), max(before)
    try:
        os.sched_setaffinity(0, {last})
        with held(tmp_path, theirs, str(first)), Turns(tmp_path, longest_wait_s=0.05).timing() as found:
            assert found == alone
    finally:
        os.sched_setaffinity(0, before)


def test_who_works_stops_working_to_time(tmp_path: Path) -> None:
    """Otherwise it would wait for itself, and two of them for each other."""
    turns = Turns(tmp_path, longest_wait_s=0.05)
    with turns.working():
        with turns.timing() as alone:
            assert alone
        with Turns(tmp_path, longest_wait_s=0.05).timing() as alone:
            assert not alone  # it works again
    with Turns(tmp_path, longest_wait_s=0.05).timing() as alone:
        assert alone


@pytest.mark.parametrize(
    ("number", "of", "least", "size"), [(0, 1, 1, machine.cores()), (0, 10**6, 1, 1), (1, 2, 10**6, machine.cores())]
)
def test_shares_of_cores(number: int, of: int, least: int, size: int) -> None:
    found = machine.share_of_cores(number, of, least)
    assert len(found) == size
    assert found <= machine.affinity()


def test_shares_are_disjoint_where_there_are_enough_cores() -> None:
    shares = [machine.share_of_cores(number, machine.cores(), 1) for number in range(machine.cores())]
    assert set.union(*shares) == machine.affinity()
    assert sum(map(len, shares)) == machine.cores()


def test_where_there_can_be_no_locks_it_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns(tmp_path / "is not there")
    for _ in range(2):
        with turns.working(), turns.timing() as alone:
            assert alone
    assert len(caplog.records) == 1
    assert "not kept apart from other mixq processes" in caplog.text


def test_the_folder_of_the_locks_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCKS, str(tmp_path))
    with held(tmp_path, "timing"), Turns(longest_wait_s=0.05).timing() as alone:
        assert not alone


def test_other_users_may_take_turns_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Turns(tmp_path).timing():
            pass
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
