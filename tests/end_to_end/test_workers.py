"""Several workers on one study: each trial once, whoever dies; joined from elsewhere, or refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import mixq
from mixq import machine
from mixq.process import ProcessId
from tests.end_to_end.killing import Faulty, children, of_the_whole_set, started, wait_until
from tests.exported import TOKENS

TWO = ("--workers", "2")
MANY = 1000  # trials that are never reached


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    return Faulty.written(tmp_path)


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced(tmp_path: Path) -> None:
    """Two in the middle of an evaluation; SIGTERM then ends the search, and its workers are not taken for dead."""
    faulty, tokens = Faulty.written(tmp_path, "Fatal"), tmp_path / "tokens"
    tokens.mkdir()
    for name in ("first", "second"):
        (tokens / name).touch()
    with started(faulty.command(MANY, *TWO), **{TOKENS: str(tokens)}) as process:
        wait_until(lambda: not list(tokens.iterdir()) and len(faulty.evaluators()) >= 4, "trials of others", process)
        process.send_signal(signal.SIGTERM)
        printed, shown = process.communicate(timeout=200)
    assert process.returncode == 0, shown
    assert "everything is in" in printed
    assert shown.count("died (SIGKILL); another one takes its place") == 2
    assert shown.count("are tried again") >= 1
    faulty.check_complete(faulty.finished())


@of_the_whole_set
def test_the_leader_is_killed(faulty: Faulty) -> None:
    """Its workers leave after the trial in flight; the same command goes on."""
    with started(faulty.command(MANY, *TWO)) as process:
        wait_until(lambda: faulty.finished() >= 8, "8 trials", process)
        crew = children(process)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: all(member.is_gone for member in crew), "the end of the workers")
    wanted = faulty.finished() + 2
    assert len(faulty.search(wanted, workers=2).trials) == wanted
    faulty.check_complete(wanted)


@of_the_whole_set
def test_leader_and_workers_are_killed_at_once(faulty: Faulty) -> None:
    with started(faulty.command(MANY, *TWO)) as process:
        wait_until(lambda: len(children(process)) == 2, "the start of the workers", process)
        crew = children(process)
        wait_until(lambda: {member.pid for member in crew} <= faulty.evaluators(), "trials of all workers", process)
        for member in [ProcessId.of(process.pid), *crew]:
            os.kill(member.pid, signal.SIGKILL)
    wait_until(lambda: all(member.is_gone for member in crew), "the end of the workers")
    wanted = faulty.finished() + 3
    faulty.search(wanted)
    faulty.check_complete(wanted)


@pytest.mark.slow
def test_a_worker_joins_a_search_and_leaves_it(faulty: Faulty) -> None:
    """Two join, another search is refused; one is sent away by SIGTERM, the other leaves when the search does."""
    with started(faulty.command(MANY)) as leader:
        wait_until(lambda: faulty.finished() >= 1, "a trial", leader)
        with started(faulty.joined()) as first, started(faulty.joined()) as second:
            with pytest.raises(mixq.InputError, match=rf"another mixq search leads .* \(.*{leader.pid}\)"):
                faulty.search(MANY)
            wait_until(lambda: {first.pid, second.pid} <= faulty.evaluators(), "the joined workers' trials", leader)
            for process in (first, leader):
                process.send_signal(signal.SIGTERM)
                _, shown = process.communicate(timeout=200)
                assert process.returncode == 0, shown
            printed, shown = second.communicate(timeout=200)
            assert (second.returncode, "finished" in printed) == (0, True), shown
    wanted = faulty.finished() + 1
    faulty.search(wanted)
    faulty.check_complete(wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "shown"),
    [({"cpu": "Another Processor 9000"}, "Another Processor 9000 "), ({"instructions": ["neon"]}, r".* neon\)")],
    ids=["of another name", "of one name, another generation"],
)
def test_a_host_of_another_cpu_is_refused_by_name(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], shown: str
) -> None:
    faulty.search(1)
    here = {**machine.describe(), **other}
    monkeypatch.setattr(machine, "describe", lambda: here)
    with pytest.raises(mixq.InputError, match=rf"compares latencies of .*; those of this host, {shown}"):
        mixq.work(faulty.task, faulty.name, faulty.storage, quiet=True)


def test_workers_need_a_task_by_name(faulty: Faulty) -> None:
    from tests.exported import Exported

    with pytest.raises(mixq.InputError, match=r"need the task as 'file\.py:Class'"):
        mixq.search(Exported(), faulty.space, faulty.out, workers=2)


def test_torchrun_and_workers_are_not_mixed(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(mixq.InputError, match="workers=2 and torchrun both start processes"):
        faulty.search(1, workers=2)
