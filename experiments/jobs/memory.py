"""Resident memory of one long search of the digits network: `python -m experiments.jobs.memory`.

One process that proposes, trains, evaluates, exports and logs to MLflow, as `mixq search` does by default. Its resident
set is read each time that it tells of a finished trial.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.tables import machine_line, markdown, publish

TASK, SPACE = "experiments/digits/task.py:Digits", "experiments/digits/demo.yaml"
WINDOW = 20  # trials, of which the median is taken: exports and trainings come and go
SETTLED = 100  # trials, after which memory is to stay as it is


def main(argv: Sequence[str]) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        sizes = list(resident(Path(folder), arguments.trials, arguments.timeout))
    publish([table(sizes), machine_line()], arguments.out)


def resident(folder: Path, trials: int, timeout: float) -> Iterator[float]:
    """MB of the search's process after each trial."""
    options = ["--trials", str(trials), "--timeout", str(timeout), "--out", str(folder), "--quiet", "--json"]
    command = [sys.executable, "-m", "mixq", "search", TASK, "--space", SPACE, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own command
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "trial":
                yield _resident_mb(process.pid)
    assert process.returncode == 0, f"mixq search ended with exit code {process.returncode}"


def table(sizes: Sequence[float]) -> str:
    """A row each hundred trials."""
    settled = _around(sizes, SETTLED)
    rows = [
        [f"{trial:,}", f"{_around(sizes, trial):.0f}", f"{_around(sizes, trial) / settled - 1:+.1%}"]
        for trial in range(SETTLED, len(sizes) + 1, SETTLED)
    ]
    head = ["trials", f"resident, MB (median of {WINDOW} trials)", f"against trial {SETTLED}"]
    most = max(sizes[SETTLED:], default=settled)
    return f"{markdown(head, rows)}\n\nThe most after any single trial: {most:.0f} MB, {most / settled - 1:+.1%}."


def _around(sizes: Sequence[float], trial: int) -> float:
    """The last of them is `trial`."""
    return statistics.median(sizes[max(0, trial - WINDOW) : trial])


def _resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
