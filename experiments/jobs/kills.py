"""Workers killed at random moments during one study of the digits: `python -m experiments.jobs.kills`.

A search with two workers, and the same search again in peace. A kill is a SIGKILL of one worker, drawn at random, be it
that it starts, proposes, evaluates or stores. Kills are spread over the study, at least one trial apart: four deaths
without a trial between them are what a search takes for a worker that cannot work.
"""

import argparse
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import mixq
from experiments.jobs.saved_digits import FOLDER, save
from experiments.tables import machine_line, markdown, publish
from mixq.searcher.study import CONFIG_ID, join_study

TASK, STUDY = "experiments/jobs/saved_digits.py:SavedDigits", "SavedDigits"
SPACE = """
precisions: [fp32, bf16, int8]
rest: [fp32, bf16]
objectives: [latency, size]
constraints: {max_drop: 0.005}
"""
SPREAD = 0.9  # of the study, over which the kills are spread
POLL = 0.02  # seconds
LONGEST_PAUSE = 0.25  # seconds between the trial after which a kill is due and the kill

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of a study. seconds: from the first trial to the last."""

    kills: int
    finished: int
    failed: int
    distinct: int
    running: int
    interrupted: int
    seconds: float


def main(argv: Sequence[str]) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        save(Path(folder))
        found = [
            searched(Path(folder) / f"kills{kills}", arguments.trials, kills, random.Random(arguments.seed))  # noqa: S311
            for kills in (arguments.kills, 0)
        ]
    publish([table(found), machine_line()], arguments.out)


def searched(out: Path, trials: int, kills: int, rng: random.Random) -> Outcome:
    """One study; its results are verified."""
    out.mkdir()
    (out / "space.yaml").write_text(SPACE, encoding="utf-8")
    options = ["--trials", str(trials), "--workers", "2", "--tracking", "none", "--out", str(out), "--quiet"]
    command = [sys.executable, "-m", "mixq", "search", TASK, "--space", str(out / "space.yaml"), *options]
    log = out.with_suffix(".log")
    with log.open("w") as told, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told) as process:  # noqa: S603
        killed = sum(_killed(process, out, math.ceil(SPREAD * trials * n / kills), rng) for n in range(1, kills + 1))
    said = log.read_text(encoding="utf-8")
    assert process.returncode == 0, said
    assert "not replaced any more" not in said, said
    assert mixq.verify(out).ok
    return _outcome(out, killed)


def _killed(process: Process, out: Path, due: int, rng: random.Random) -> int:
    """Kill a worker after `due` trials, and one at least since the last kill; how many there were to be killed."""
    wanted = max(due, _finished(out) + 1)
    while _finished(out) < wanted and process.poll() is None:
        time.sleep(POLL)
    time.sleep(rng.uniform(0, LONGEST_PAUSE))
    killed = 0
    while not killed and process.poll() is None:  # its last worker may just have been killed
        killed = _kill_one(process.pid, rng)
        time.sleep(POLL)
    return killed


def _finished(out: Path) -> int:
    """Trials so far, as the database has them: those that a search tells of come several at a time."""
    if not (out / "study.db").exists():
        return 0
    with closing(sqlite3.connect(f"{(out / 'study.db').as_uri()}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'trials'").fetchone()[0]
        finished = "SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
        return int(database.execute(finished).fetchone()[0]) if tables else 0


def _kill_one(leader: int, rng: random.Random) -> int:
    """How many were there to be killed: one or none."""
    with suppress(FileNotFoundError, ProcessLookupError):  # the search, or the worker, is over
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text(encoding="ascii").split()
        workers = [int(pid) for pid in children if not _is_dead(int(pid))]
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            return 1
    return 0


def _is_dead(pid: int) -> bool:
    """Killed, and its parent has not asked for it yet."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"


def _outcome(out: Path, kills: int) -> Outcome:
    counts = json.loads((out / "summary.json").read_text(encoding="utf-8"))["trials"]
    trials = join_study(f"sqlite:///{out / 'study.db'}", STUDY).trials
    states = Counter(trial.state.name for trial in trials)
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    told = [t.user_attrs[CONFIG_ID] for t in trials if t.state.name != "FAIL" and CONFIG_ID in t.user_attrs]
    assert len(told) == len(set(told)), "a configuration was counted twice"
    seconds = (max(ends) - min(ends)).total_seconds()
    return Outcome(
        kills, sum(counts.values()), counts["failed"], len(set(told)), states["RUNNING"], states["FAIL"], seconds
    )


def table(found: Sequence[Outcome]) -> str:
    """A row a study."""
    head = [
        "kills",
        "trials finished",
        "distinct configurations",
        "failed",
        "left running",
        "cut off, tried again",
        "s",
    ]
    rows = [
        [
            str(each.kills),
            str(each.finished),
            str(each.distinct),
            str(each.failed),
            str(each.running),
            str(each.interrupted - each.failed),
            f"{each.seconds:.0f}",
        ]
        for each in found
    ]
    killed, peaceful = found
    lost = (killed.seconds - peaceful.seconds) / max(killed.kills, 1)
    return f"{markdown(head, rows)}\n\nWall time lost: {killed.seconds - peaceful.seconds:.0f} s, {lost:.1f} s a kill."


if __name__ == "__main__":
    main(sys.argv[1:])
