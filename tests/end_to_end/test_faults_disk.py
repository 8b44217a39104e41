"""A disk that is full and one that can only be read, in the middle of a search: one error, and nothing is torn."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import mixq
from mixq.errors import MOST_LINES
from tests.end_to_end.killing import Faulty, of_the_whole_set, started
from tests.end_to_end.namespaces import Namespace, mounted

TRIALS = 10
BEGUN = 3  # trials before the fault
BLOCK = bytes(1 << 16)


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    found = Faulty.written(tmp_path)
    found.out.mkdir()
    return found


@pytest.fixture
def disk(faulty: Faulty) -> Iterator[Namespace]:
    """A small one for the results alone."""
    with mounted(faulty.out, ["size=24m"]) as found:
        yield found


def fill(disk: Namespace, folder: Path) -> None:
    with suppress(OSError), (disk.seen(folder) / "ballast").open("wb", buffering=0) as file:
        while file.write(BLOCK):
            pass


def empty(disk: Namespace, folder: Path) -> None:
    (disk.seen(folder) / "ballast").unlink()


def lock(disk: Namespace, folder: Path) -> None:
    """What is opened from now on can only be read."""
    disk.run("mount", "--bind", folder, folder)
    disk.run("mount", "-o", "remount,bind,ro", folder)


def unlock(disk: Namespace, folder: Path) -> None:
    disk.run("umount", folder)


Fault = Callable[[Namespace, Path], None]
FULL, READ_ONLY = (fill, empty, ("No space left on device", "disk is full")), (lock, unlock, ("Read-only file system",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "workers", "tracking"),
    [
        pytest.param(FULL, 1, "none", id="full"),
        pytest.param(FULL, 2, "none", id="full, two workers", marks=of_the_whole_set),
        pytest.param(FULL, 1, "own", id="full, MLflow too", marks=of_the_whole_set),
        pytest.param(READ_ONLY, 1, "none", id="read-only", marks=of_the_whole_set),
    ],
)
def test_a_disk_that_fails_in_the_middle(
    fault: tuple[Fault, Fault, tuple[str, ...]], workers: int, tracking: str, faulty: Faulty, disk: Namespace
) -> None:
    breaks, mends, told = fault
    options = ["--workers", str(workers)]
    if tracking == "own":
        options += ["--tracking", f"sqlite:///{faulty.out}/mlflow.db"]
    command = faulty.command(TRIALS, "--json", *options)
    with started(command, within=disk.enter) as process:
        wait_for_trials(process, BEGUN)
        breaks(disk, faulty.out)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    message = said[said.rindex("mixq: ") :]
    assert len(message.strip().splitlines()) <= MOST_LINES
    assert workers > 1 or any(part in message for part in told), said
    assert mixq.verify(disk.seen(faulty.out)).ok
    mends(disk, faulty.out)
    again = run_within(disk, command)
    assert again.returncode == 0, again.stderr
    copied(disk, faulty).check_complete(TRIALS)


def wait_for_trials(process: subprocess.Popen[str], number: int) -> None:
    """Until it has told of so many."""
    assert process.stdout is not None
    told = 0
    while told < number:
        line = process.stdout.readline()
        assert line, process.communicate()
        told += json.loads(line)["event"] == "trial"


def copied(disk: Namespace, faulty: Faulty) -> Faulty:
    """Where this process may open it too: SQLite does not, through /proc."""
    return replace(faulty, out=shutil.copytree(disk.seen(faulty.out), faulty.out, dirs_exist_ok=True))


def run_within(disk: Namespace, command: list[str]) -> subprocess.CompletedProcess[str]:
    with started(command, within=disk.enter) as process:
        printed, said = process.communicate(timeout=200)
    return subprocess.CompletedProcess(command, process.returncode, printed, said)


def test_a_folder_that_can_only_be_read_is_refused(faulty: Faulty, disk: Namespace) -> None:
    lock(disk, faulty.out)
    refused = run_within(disk, faulty.command(TRIALS))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "Read-only file system; choose a folder that you may write to" in refused.stderr
    assert not list(disk.seen(faulty.out).iterdir())
