"""Searches that are killed, really, and what must hold once they were given again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mixq
from mixq.process import ProcessId
from mixq.searcher.study import CONFIG_ID, FINISHED, counted, join_study
from mixq.task import Array, Outputs
from tests.end_to_end.blobs import ROOT, TASK, Blobs

TOKENS = "MIXQ_TEST_TOKENS"
KILLED = -signal.SIGKILL
# Kills its own process at the call `number` of a function whose last positional argument ends with `argument`.
FATAL = """
import os, signal, sys
from importlib import import_module
from mixq import cli, latency

latency.PATIENCE = latency.TIMINGS = 1  # time matters to no test here
place, number, argument = sys.argv[1:4]
module, _, path = place.partition(":")
*owners, name = path.split(".")
owner = import_module(module)
for part in owners:
    owner = getattr(owner, part)
function, calls = getattr(owner, name), 0

def fatal(*positional, **named):
    global calls
    calls += str(positional[-1]).endswith(argument) if argument else 1
    if calls == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*positional, **named)

setattr(owner, name, fatal)
sys.exit(cli.main(sys.argv[4:]))
"""


class Fatal(Blobs):
    """Each token in the folder TOKENS kills one process of a crew while it evaluates."""

    calls = 0

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        self.calls += 1  # the first one is FP32's, before it joins
        if self.calls > 1 and "MIXQ_LEADER" in os.environ:
            for token in Path(os.environ[TOKENS]).glob("*"):
                try:
                    token.unlink()
                except FileNotFoundError:  # another process took it
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().metrics(outputs, targets)


FATAL_TASK = "tests.end_to_end.killing:Fatal"


def arguments(out: Path, space: Path, *options: str | Path, task: str = TASK) -> list[str]:
    return [
        str(part) for part in ("search", task, "--space", space, "--out", out, "--timeout", "250", "--quiet", *options)
    ]


def killed_at(place: str, number: int, argument: str, command: list[str]) -> None:
    """Run it until it kills itself there."""
    done = subprocess.run(
        [sys.executable, "-c", FATAL, place, str(number), argument, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == KILLED, done.stderr


@contextmanager
def started(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`mixq` in a process of its own, which is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mixq", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(met: Callable[[], bool], what: str, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, f"{what} not within {seconds} s"
        time.sleep(0.05)


def finished(out: Path, name: str = "Blobs") -> int:
    """Trials that are finished so far."""
    if not (out / "study.db").exists():
        return 0
    try:
        study = join_study(f"sqlite:///{out / 'study.db'}", name)
    except mixq.InputError:  # it is being made
        return 0
    return len(counted(study.get_trials(deepcopy=False, states=FINISHED)))


def children(process: subprocess.Popen[str]) -> list[ProcessId]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [ProcessId.of(int(pid)) for pid in path.read_text(encoding="ascii").split()]


def check_complete(out: Path, trials: int, name: str = "Blobs", storage: str = "") -> None:
    """Nothing is lost, nothing was counted twice, and what lies in the folder belongs together."""
    study = join_study(storage or f"sqlite:///{out / 'study.db'}", name)
    states = Counter(trial.state.name for trial in study.trials)
    assert states["RUNNING"] == 0
    counts = json.loads((out / "summary.json").read_text(encoding="utf-8"))["trials"]
    assert sum(counts.values()) == trials, (counts, states)
    assert counts["failed"] == 0
    told = [t.user_attrs[CONFIG_ID] for t in study.trials if t.state.name != "FAIL" and CONFIG_ID in t.user_attrs]
    assert len(told) == len(set(told)) == trials
    found = mixq.verify(out)
    assert found.ok, found
    best = json.loads((out / "summary.json").read_text(encoding="utf-8"))["best"]
    certificate = json.loads((out / "certificate.json").read_text(encoding="utf-8"))
    assert certificate["config_id"] == best["config_id"]
    assert certificate["measured"]["speedup"]["median"] == best["speedup"]
