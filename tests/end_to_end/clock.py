"""A clock that jumps: what a process takes for the time is a number of seconds off, which a file says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# What the command line does, by that clock. The time is asked for in two ways: mixq's and MLflow's, and Optuna's.
PROGRAM = """
import datetime, sys, time
from pathlib import Path
from optuna.storages._rdb import storage
from mixq import cli

real_time = time.time

def offset():
    return float(Path(sys.argv[1]).read_text())

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=offset())

time.time = lambda: real_time() + offset()
storage.datetime = Shifted
sys.exit(cli.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Clock:
    """Of the processes that run its `program`."""

    file: Path

    @property
    def program(self) -> list[str]:
        """What Python is to run instead of the command line."""
        return ["-c", PROGRAM, str(self.file)]

    def jump(self, seconds: float) -> None:
        """That far from the real time, from now on."""
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds), encoding="ascii")
        new.replace(self.file)
