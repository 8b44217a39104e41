"""Trials a minute by one worker and by two, ResNet-20 on CIFAR-10: `python -m experiments.jobs.throughput`.

Every run goes on from the same study, whose layers were analyzed and whose long recipes were made: these are paid once,
whoever evaluates. Counted are the trials that end between the first trial of the last worker to begin and the last
trial of the study, which leaves out how long processes take to start. `--postgresql URL`: of a server to compare with.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna

from experiments.tables import machine_line, markdown, publish
from mixq import machine
from mixq.process import ProcessId
from mixq.searcher.storage import open_storage
from mixq.searcher.study import WORKER, join_study

CORES = 2
TASK, STUDY = "experiments/cifar10_resnet/task.py:ResNet20", "ResNet20"
SPACE = "search_spaces/cpu.yaml"


@dataclass(frozen=True)
class Setting:
    """workers: processes that evaluate, all of them on CORES cores."""

    workers: int
    storage: str  # "SQLite" or "PostgreSQL"

    def __str__(self) -> str:
        return f"{self.workers}, {self.storage}"


def main(argv: Sequence[str]) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40, help="of a run, after those of the analysis")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--postgresql", help="the URL of a database; each run makes a study of its own there")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args(argv)
    storages = ["SQLite", *(["PostgreSQL"] if arguments.postgresql else [])]
    settings = [Setting(workers, storage) for storage in storages for workers in (1, 2)]
    rates: dict[Setting, list[float]] = {setting: [] for setting in settings}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        known = _prepare(start)
        for number in range(arguments.rounds):  # interleaved, so that a slow hour hits all alike
            for setting in settings:
                rate = measured(
                    setting, start, Path(folder) / f"{number}", arguments.postgresql, known, arguments.trials
                )
                rates[setting].append(rate)
                print(f"{setting}: {rate:.1f} a minute", file=sys.stderr, flush=True)
    publish([table(rates), machine_line()], arguments.out)


def _prepare(start: Path) -> int:
    """A search that has analyzed its layers and tried what comes first; how many trials it has."""
    start.mkdir()
    return _search(start, 24, 1, f"sqlite:///{start}/study.db", STUDY)


def measured(setting: Setting, start: Path, out: Path, database: str | None, known: int, trials: int) -> float:
    """Trials a minute."""
    shutil.copytree(start, out)
    source = open_storage(f"sqlite:///{out}/study.db")
    url, name = f"sqlite:///{out}/study.db", STUDY
    if setting.storage == "PostgreSQL":
        assert database is not None
        url, name = database, f"{setting} {os.getpid()} {out.name}"
        optuna.copy_study(from_study_name=STUDY, from_storage=source, to_storage=open_storage(url), to_study_name=name)
    _search(out, known + trials, setting.workers, url, name)
    found = rate(url, name, known)
    shutil.rmtree(out)
    return found


def _search(out: Path, trials: int, workers: int, url: str, name: str) -> int:
    options = ["--trials", str(trials), "--workers", str(workers), "--storage", url, "--study", name, "--out", str(out)]
    command = [
        sys.executable,
        "-m",
        "mixq",
        "search",
        TASK,
        "--space",
        SPACE,
        *options,
        "--tracking",
        "none",
        "--quiet",
    ]
    before = machine.affinity()
    os.sched_setaffinity(0, set(sorted(before)[:CORES]))  # a process has those of the one that starts it
    try:
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    finally:
        os.sched_setaffinity(0, before)
    assert done.returncode == 0, f"mixq search ended with exit code {done.returncode}"
    return len(join_study(url, name).trials)


def rate(url: str, name: str, known: int) -> float:
    """Trials a minute of the processes that evaluated after the first `known` trials."""
    spans = list(_spans(url, name, known))
    first = {pid: begin for pid, begin, _ in reversed(spans)}
    begun = max(first.values())
    ends = [end for _, _, end in spans if end > begun]
    return 60 * len(ends) / (max(ends) - begun).total_seconds()


def _spans(url: str, name: str, known: int) -> Iterator[tuple[int, datetime, datetime]]:
    """Of each new trial: who evaluated it, when it began and ended."""
    for trial in join_study(url, name).trials[known:]:
        if WORKER in trial.user_attrs and trial.datetime_start is not None and trial.datetime_complete is not None:
            pid = ProcessId.from_json(trial.user_attrs[WORKER]).pid
            yield pid, trial.datetime_start, trial.datetime_complete


def table(rates: dict[Setting, list[float]]) -> str:
    """A row a setting, against one worker that has both cores."""
    head = [f"workers on {CORES} cores", "storage", "trials a minute [least, most]", "÷ one worker"]
    rows = []
    for setting, found in rates.items():
        middle = statistics.median(found)
        alone = statistics.median(rates[Setting(1, setting.storage)])
        spread = f"{middle:.1f} [{min(found):.1f}, {max(found):.1f}]"
        rows.append([str(setting.workers), setting.storage, spread, f"{middle / alone:.2f}"])
    return markdown(head, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
