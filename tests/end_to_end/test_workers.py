"""Several workers on one study: each trial once, whoever dies; joined from elsewhere, or refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import mixq
from mixq import machine
from mixq.process import ProcessId
from mixq.searcher.study import WORKER, join_study
from tests.end_to_end.blobs import SPACE, TASK, written
from tests.end_to_end.killing import (
    FATAL_TASK,
    TOKENS,
    arguments,
    check_complete,
    children,
    finished,
    started,
    wait_until,
)

TRIALS = 16


def search(out: Path, space: Path, *options: str, trials: int = TRIALS, task: str = TASK) -> list[str]:
    given = ("--workers", "2", "--trials", str(trials), "--tracking", "none")
    return arguments(out, space, *given, *options, task=task)


def evaluators(out: Path, name: str = "Blobs") -> set[int]:
    """The processes that evaluated."""
    study = join_study(f"sqlite:///{out / 'study.db'}", name)
    return {ProcessId.from_json(t.user_attrs[WORKER]).pid for t in study.trials if WORKER in t.user_attrs}


def test_workers_that_are_killed_are_replaced(tmp_path: Path) -> None:
    """Two in the middle of an evaluation."""
    out, space, tokens = tmp_path / "out", written(tmp_path, SPACE), tmp_path / "tokens"
    tokens.mkdir()
    for name in ("first", "second"):
        (tokens / name).touch()
    with started(search(out, space, trials=40, task=FATAL_TASK), **{TOKENS: str(tokens)}) as process:
        printed, shown = process.communicate(timeout=280)
    assert process.returncode == 0, shown
    assert "everything is in" in printed
    assert not list(tokens.iterdir())
    assert shown.count("died (SIGKILL); another one takes its place") == 2
    assert shown.count("are tried again") >= 1
    check_complete(out, 40, "Fatal")
    assert len(evaluators(out, "Fatal")) >= 4


@pytest.mark.slow
def test_the_leader_is_killed(tmp_path: Path) -> None:
    """Its workers leave after the trial in flight; the same command goes on."""
    out, space = tmp_path / "out", written(tmp_path, SPACE)
    with started(search(out, space, trials=200)) as process:
        wait_until(lambda: finished(out) >= 8, "8 trials")
        crew = children(process)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: all(member.is_gone for member in crew), "the end of the workers")
    wanted = finished(out) + 2
    assert wanted < 200
    again = mixq.search(TASK, space, out, trials=wanted, tracking="none", workers=2, quiet=True)
    assert len(again.trials) == wanted
    check_complete(out, wanted)


@pytest.mark.slow
def test_leader_and_workers_are_killed_at_once(tmp_path: Path) -> None:
    out, space = tmp_path / "out", written(tmp_path, SPACE)
    with started(search(out, space, trials=200)) as process:
        wait_until(lambda: finished(out) >= 8, "8 trials")
        for member in [*children(process), ProcessId.of(process.pid)]:
            os.kill(member.pid, signal.SIGKILL)
    wanted = finished(out) + 3
    mixq.search(TASK, space, out, trials=wanted, tracking="none", quiet=True)
    check_complete(out, wanted)


def joined(out: Path, *options: str) -> list[str]:
    storage = f"sqlite:///{out / 'study.db'}"
    return ["worker", TASK, "--study", "Blobs", "--storage", storage, *options]


@pytest.mark.slow
def test_a_worker_joins_a_search_and_leaves_it(tmp_path: Path) -> None:
    """Two join; one is sent away by SIGTERM, the other leaves when the search does."""
    out, space = tmp_path / "out", written(tmp_path, SPACE.replace("[3]", "[3, 4, 5, 6, 7, 8, 9]"))  # a large space
    with started(arguments(out, space, "--trials", "100000", "--tracking", "none")) as leader:
        wait_until(lambda: finished(out) >= 1, "a trial")
        with started(joined(out)) as first, started(joined(out)) as second:
            wait_until(lambda: {first.pid, second.pid} <= evaluators(out), "the joined workers' trials")
            for process in (first, leader):
                process.send_signal(signal.SIGTERM)
                _, shown = process.communicate(timeout=200)
                assert process.returncode == 0, shown
            printed, shown = second.communicate(timeout=200)
            assert (second.returncode, "finished" in printed) == (0, True), shown
    wanted = finished(out) + 1
    mixq.search(TASK, space, out, trials=wanted, tracking="none", quiet=True)
    check_complete(out, wanted)


def test_a_worker_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(mixq.InputError, match=r"there is no study 'nothing' in sqlite:.* \(there: none\)"):
        mixq.work(TASK, "nothing", f"sqlite:///{tmp_path / 'study.db'}", quiet=True)


def test_a_host_of_another_cpu_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, space = tmp_path / "out", written(tmp_path, SPACE)
    mixq.search(TASK, space, out, trials=1, tracking="none", quiet=True)
    here = {**machine.describe(), "cpu": "Another Processor 9000"}
    monkeypatch.setattr(machine, "describe", lambda: here)
    with pytest.raises(mixq.InputError, match=r"compares latencies of .*; those of this host, Another Processor 9000,"):
        mixq.work(TASK, "Blobs", f"sqlite:///{out / 'study.db'}", quiet=True)


@pytest.mark.parametrize(
    ("task", "workers", "told"),
    [(TASK, 0, "workers must be at least 1, got 0"), (None, 2, "need the task as 'file.py:Class'")],
)
def test_bad_numbers_of_workers(task: str | None, workers: int, told: str, tmp_path: Path) -> None:
    from tests.end_to_end.blobs import Blobs

    with pytest.raises(mixq.InputError, match=told):
        mixq.search(task or Blobs(), written(tmp_path, SPACE), tmp_path / "out", workers=workers)


def test_torchrun_and_workers_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(mixq.InputError, match="workers=2 and torchrun both start processes"):
        mixq.search(TASK, written(tmp_path, SPACE), tmp_path / "out", workers=2)
