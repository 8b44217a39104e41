"""Hosts: two of them with a network between them, and clocks that jump or never agreed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

import mixq
from mixq.process import ProcessId
from mixq.searcher.study import WORKER, trials_of
from mixq.turns import LOCKS
from tests import postgresql
from tests.end_to_end.clock import Clock
from tests.end_to_end.killing import Faulty, children, of_the_whole_set, started, wait_until
from tests.end_to_end.namespaces import HOST, Namespace, namespace

# See tests/searcher/test_postgresql.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOURS = 3600.0
TRIALS, MANY = 10, 1000
ADDRESSES = ("10.213.71.1", "10.213.71.2")


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    yield Faulty.written(tmp_path)
    gc.collect()


def elapsed(faulty: Faulty) -> list[float]:
    return [trial.elapsed_s for trial in trials_of(faulty.study)]


@pytest.mark.slow
def test_the_clock_jumps(faulty: Faulty, tmp_path: Path) -> None:
    """Back, then forward; what was spent is told by clocks that do not."""
    clock = Clock(tmp_path / "clock")
    clock.jump(0)
    with started(faulty.command(TRIALS), program=clock.program) as process:
        for finished, hours in ((2, -5), (5, 11)):
            wait_until(lambda least=finished: faulty.finished() >= least, "trials", process)  # type: ignore[misc]
            clock.jump(hours * HOURS)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    times = [trial.datetime_complete for trial in faulty.study.trials if trial.datetime_complete]
    assert max(times) - min(times) > timedelta(hours=10)  # it reached those who asked for the time
    faulty.check_complete(TRIALS)
    wall = json.loads((faulty.out / "summary.json").read_text(encoding="utf-8"))["wall_s"]
    assert elapsed(faulty) == sorted(elapsed(faulty))
    assert 0 < max(elapsed(faulty)) <= wall < HOURS
    faulty.search(TRIALS + 1)
    faulty.check_complete(TRIALS + 1)
    assert 0 < max(elapsed(faulty)) < HOURS


@contextmanager
def two_hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """With a cable between them."""
    with namespace(*HOST) as first, namespace(*HOST) as second:
        ip, ends = shutil.which("ip"), ("netns", str(first.pid), "type", "veth", "peer", "name", "cable")
        if ip is None:
            pytest.skip("networks are made by ip: apt-get install iproute2")
        command = [ip, "link", "add", "cable", *ends, "netns", str(second.pid)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no network can be made here: {made.stderr.strip()}")
        for host, address in zip((first, second), ADDRESSES, strict=True):
            host.run("hostname", f"host-{address}")
            host.run("ip", "address", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                host.run("ip", "link", "set", link, "up")
        yield first, second


@of_the_whole_set
def test_two_hosts(faulty: Faulty, tmp_path: Path) -> None:
    """One leads and has the database. On the other, whose clock is hours off, a worker is killed, and one leaves."""
    clock = Clock(tmp_path / "clock")
    clock.jump(-7 * HOURS)
    with two_hosts() as (here, there), postgresql.running(ADDRESSES[0], here.enter) as server:
        shared, seen = replace(faulty, database=server.url), replace(faulty, database=server.local_url)
        locks, elsewhere = folder(tmp_path / "here"), {LOCKS: folder(tmp_path / "there")}
        joined = partial(
            started, [*shared.joined(), "--wait", "100"], within=there.enter, program=clock.program, **elsewhere
        )
        with (
            started(shared.command(MANY), within=here.enter, **{LOCKS: locks}) as leader,
            joined() as killed,
            joined() as leaving,
        ):
            first, second = pid_there(killed), pid_there(leaving)
            wait_until(lambda: len(begun_by(seen, first)) >= 2, "trials of the other host", killed)
            os.kill(inner(killed), signal.SIGKILL)
            wait_until(lambda: "RUNNING" not in begun_by(seen, first), "the end of the killed worker's trial", leader)
            lost = begun_by(seen, first)
            wait_until(lambda: len(begun_by(seen, second)) >= 2, "trials of the other host", leaving)
            for process in (leaving, leader):
                os.kill(inner(process), signal.SIGTERM)
                _, said = process.communicate(timeout=200)
                assert process.returncode == 0, said
        wanted = seen.finished()
        with started(shared.command(wanted), within=here.enter, **{LOCKS: locks}) as leader:
            _, said = leader.communicate(timeout=200)
        assert leader.returncode == 0, said
        seen.check_complete(wanted)
        assert begun_by(seen, first) == lost
        assert 0 <= min(elapsed(seen)) <= max(elapsed(seen)) < HOURS
        gc.collect()


def folder(path: Path) -> str:
    path.mkdir()
    return str(path)


def inner(process: subprocess.Popen[str]) -> int:
    """The process that `nsenter` waits for."""
    wait_until(lambda: bool(children(process)), "its start", process)
    return children(process)[0].pid


def pid_there(process: subprocess.Popen[str]) -> int:
    """The number of the same on the host where it runs."""
    lines = Path(f"/proc/{inner(process)}/status").read_text(encoding="ascii").splitlines()
    (numbers,) = (line.split()[1:] for line in lines if line.startswith("NSpid:"))
    return int(numbers[-1])


def begun_by(faulty: Faulty, pid: int) -> list[str]:
    """The states of the trials of a process on the second host."""
    try:
        trials = [trial for trial in faulty.study.trials if WORKER in trial.user_attrs]
    except mixq.InputError:  # it is being made
        return []
    found = [(trial.state.name, trial.user_attrs[WORKER]) for trial in trials]
    host = f"host-{ADDRESSES[1]}"
    return [state for state, w in found if (ProcessId.from_json(w).host, ProcessId.from_json(w).pid) == (host, pid)]
