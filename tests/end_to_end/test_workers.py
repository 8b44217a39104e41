"""Several workers on one study: each trial once, whoever dies; joined from elsewhere, or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
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

LARGE = SPACE.replace("[3]", "[3, 4, 5, 6, 7, 8, 9]")  # a space that is not used up


def search(out: Path, space: Path, *options: str, trials: int, task: str = TASK) -> list[str]:
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
    with started(search(out, space, trials=24, task=FATAL_TASK), **{TOKENS: str(tokens)}) as process:
        printed, shown = process.communicate(timeout=280)
    assert process.returncode == 0, shown
    assert "everything is in" in printed
    assert not list(tokens.iterdir())
    assert shown.count("died (SIGKILL); another one takes its place") == 2
    assert shown.count("are tried again") >= 1
    check_complete(out, 24, "Fatal")
    assert len(evaluators(out, "Fatal")) >= 4


def crew_at_work(out: Path, process: subprocess.Popen[str]) -> list[ProcessId]:
    """The workers of a search, once each of them evaluates."""
    wait_until(lambda: len(children(process)) == 2, "the start of the workers")
    crew = children(process)
    wait_until(lambda: {member.pid for member in crew} <= evaluators(out), "trials of all workers")
    return crew


@pytest.mark.slow
def test_searches_with_workers_that_are_killed_or_stopped(tmp_path: Path) -> None:
    """The leader alone, whose workers leave; then all at once; then one is stopped by SIGTERM, and ends cleanly."""
    out, space = tmp_path / "out", written(tmp_path, LARGE)
    command = search(out, space, trials=100000)
    with started(command) as process:
        crew = crew_at_work(out, process)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: all(member.is_gone for member in crew), "the end of the workers")
    with started(command) as process:
        for member in [*crew_at_work(out, process), ProcessId.of(process.pid)]:
            os.kill(member.pid, signal.SIGKILL)
    with started(command) as process:
        crew = crew_at_work(out, process)
        process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=200)
    assert process.returncode == 0, shown
    assert all(member.is_gone for member in crew)
    assert "died" not in shown
    counts = json.loads((out / "summary.json").read_text(encoding="utf-8"))["trials"]
    check_complete(out, sum(counts.values()))


def joined(out: Path, *options: str) -> list[str]:
    storage = f"sqlite:///{out / 'study.db'}"
    return ["worker", TASK, "--study", "Blobs", "--storage", storage, *options]


@pytest.mark.slow
def test_a_worker_joins_a_search_and_leaves_it(tmp_path: Path) -> None:
    """Two join, another search is refused; one is sent away by SIGTERM, the other leaves when the search does."""
    out, space = tmp_path / "out", written(tmp_path, LARGE)
    with started(arguments(out, space, "--trials", "100000", "--tracking", "none")) as leader:
        wait_until(lambda: finished(out) >= 1, "a trial")
        with started(joined(out)) as first, started(joined(out)) as second:
            with pytest.raises(mixq.InputError, match=rf"another mixq search leads .* \(.*{leader.pid}\)"):
                mixq.search(TASK, space, out, tracking="none", quiet=True)
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
