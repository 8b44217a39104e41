"""Searches that are killed, really, and what must hold once they were given again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import mixq
from mixq.process import ProcessId
from mixq.searcher.study import CONFIG_ID, FINISHED, WORKER, Study, counted, join_study
from tests import exported
from tests.end_to_end.blobs import ROOT, written

LONGEST_WAIT = 200  # seconds
MIXQ = ("-m", "mixq")
KILLED = -signal.SIGKILL
WHOLE_SET = "MIXQ_ALL_FAULTS"
of_the_whole_set = pytest.mark.skipif(not os.environ.get(WHOLE_SET), reason=f"minutes: make faults ({WHOLE_SET}=1)")

# Large enough not to be used up; every configuration is good enough to be exported, where it is small.
SPACE = """
precisions: [fp32, bf16, fp16, int8]
rest: [fp32, bf16, fp16]
recipes:
  mse: [{name: calibrate}]
  all: [{name: calibrate, params: {activations: minmax}}]
objectives: [size, latency]
constraints: {max_drop: 1}
"""
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


@dataclass(frozen=True)
class Faulty:
    """A search that is going to be killed: its task and its space, and where its results go.

    database: the URL of its study; by default a file in `out`.
    """

    task: str
    space: Path
    out: Path
    database: str = ""

    @classmethod
    def written(cls, folder: Path, name: str = "Exported") -> Faulty:
        """One whose task and model lie in `folder`."""
        return cls(f"{exported.write(folder)}:{name}", written(folder, SPACE), folder / "out")

    @property
    def name(self) -> str:
        return self.task.rpartition(":")[2]

    @property
    def storage(self) -> str:
        return self.database or f"sqlite:///{self.out / 'study.db'}"

    def command(self, trials: int, *options: str) -> list[str]:
        stored = ("--storage", self.database) if self.database else ()
        given = ("--trials", str(trials), "--timeout", "250", "--quiet", *stored, *options)
        tracking = () if "--tracking" in options else ("--tracking", "none")
        return ["search", self.task, "--space", str(self.space), "--out", str(self.out), *given, *tracking]

    def search(self, trials: int, workers: int = 1, tracking: str = "none") -> mixq.SearchResult:
        """Given again, in this process."""
        return mixq.search(
            *(self.task, self.space, self.out),
            trials=trials,
            workers=workers,
            tracking=tracking,
            storage=self.database or None,
            quiet=True,
        )

    def joined(self) -> list[str]:
        return ["worker", self.task, "--study", self.name, "--storage", self.storage]

    @property
    def study(self) -> Study:
        return join_study(self.storage, self.name)

    def finished(self) -> int:
        """Trials that are finished so far."""
        try:
            return len(counted(self.study.get_trials(deepcopy=False, states=FINISHED)))
        except mixq.InputError:  # it is being made
            return 0

    def evaluators(self) -> set[int]:
        """The processes that evaluated."""
        attributes = [trial.user_attrs for trial in self.study.trials]
        return {ProcessId.from_json(found[WORKER]).pid for found in attributes if WORKER in found}

    def check_complete(self, trials: int) -> None:
        """Nothing is lost, nothing was counted twice, and what lies in the folder belongs together."""
        found = self.study.trials
        states = Counter(trial.state.name for trial in found)
        summary = json.loads((self.out / "summary.json").read_text(encoding="utf-8"))
        counts, best = summary["trials"], summary["best"]
        assert (sum(counts.values()), counts["failed"], states["RUNNING"]) == (trials, 0, 0), (counts, states)
        told = [t.user_attrs[CONFIG_ID] for t in found if t.state.name != "FAIL" and CONFIG_ID in t.user_attrs]
        assert len(told) == len(set(told)) == trials
        assert mixq.verify(self.out).ok
        certificate = json.loads((self.out / "certificate.json").read_text(encoding="utf-8"))
        assert certificate["config_id"] == best["config_id"]
        assert best["holdout"]["rows"] > 0
        assert certificate["measured"]["speedup"]["median"] == best["speedup"]


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
def started(
    command: list[str], *, within: Sequence[str] = (), program: Sequence[str] = MIXQ, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`mixq` in a process of its own, which is gone afterwards.

    within: a command that runs commands, in a namespace. program: what Python runs.
    """
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*within, sys.executable, *program, *command],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(met: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Raises AssertionError where the process, which is to bring it about, ends before."""
    end = time.monotonic() + LONGEST_WAIT
    while not met():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{what} not within {LONGEST_WAIT} s"
        time.sleep(0.05)


def children(process: subprocess.Popen[str]) -> list[ProcessId]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [ProcessId.of(int(pid)) for pid in path.read_text(encoding="ascii").split()]
