"""Seconds of a trial that Optuna's storage takes: `python -m experiments.jobs.storage_time`.

A search of the digits in one process, every call of Optuna's storage timed, whoever makes it: proposing, the sampler,
telling, the tables. `--postgresql URL`: of a server to compare with.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mixq
from experiments.jobs.kills import SPACE
from experiments.tables import machine_line, markdown, publish
from mixq.searcher.storage import CALLS, PatientStorage

TASK = "experiments/digits/task.py:Digits"


class Meter:
    """seconds: within the outermost of nested calls."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._depth = 0.0, 0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*positional, **named)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1

        return call


@contextmanager
def metered() -> Iterator[Meter]:
    """Every call of a study's storage."""
    meter = Meter()
    timed: dict[str, Any] = {name: meter.timed(getattr(PatientStorage, name)) for name in CALLS}
    with patch.multiple(PatientStorage, **timed):
        yield meter


def main(argv: Sequence[str]) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--postgresql", help="the URL of a database; the study made there stays")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args(argv)
    rows = []
    for name, url in {"SQLite": None, "PostgreSQL": arguments.postgresql}.items():
        if url or name == "SQLite":
            meter, trials, seconds = searched(url, arguments.trials)
            share, calls = meter.seconds / seconds, meter.calls / trials
            rows.append([name, str(trials), f"{calls:.0f}", f"{1e3 * meter.seconds / trials:.0f}", f"{share:.1%}"])
    head = ["storage", "trials", "calls a trial", "ms a trial", "of the wall time"]
    publish([markdown(head, rows), machine_line()], arguments.out)


def searched(url: str | None, trials: int) -> tuple[Meter, int, float]:
    """The meter, the number of trials, the seconds of the whole search."""
    with tempfile.TemporaryDirectory() as folder, metered() as meter:
        space = Path(folder) / "space.yaml"
        space.write_text(SPACE, encoding="utf-8")
        study, start = f"storage time {os.getpid()}", time.perf_counter()
        found = mixq.search(
            *(TASK, space, Path(folder) / "out"), trials=trials, study=study, storage=url, tracking="none", quiet=True
        )
        assert meter.calls
        return meter, len(found.trials), time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
