"""A study of something else is refused, and a disk that is full leaves what was whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mixq import cli, machine
from tests.bad_input.refusal import check, contents, refusal, says, search
from tests.bad_input.user_files import OTHERS


@pytest.mark.filterwarnings("ignore:OtherData.batches yields the same data")
@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        *((name, "", told) for name, (_, told) in OTHERS.items()),
        ("Tiny", "--space {files}/other.yaml", ["(space: "]),
        ("Tiny", "--max-drop 0.25", ["(space: "]),
        ("Tiny", "--runtime onnxruntime", ["(runtime: openvino ", " then, onnxruntime "]),
        pytest.param(
            "Tiny",
            "--threads 2",
            ["(threads: 1 then, 2 now)"],
            marks=pytest.mark.skipif(machine.cores() < 2, reason="needs two cores"),
        ),
    ],
)
def test_a_study_of_something_else(
    task: str, options: str, told: list[str], files: Path, searched: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(searched, "out")
    said = refusal([*search(files, task), *options.format(files=files).split()], capfd)
    assert says(said, ["the study 'tiny' was made for something else", *told, "give another --study or --out"])
    with sqlite3.connect("out/study.db") as study:
        assert study.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone() == (2,)


@pytest.mark.slow
def test_a_study_may_lie_in_a_folder_that_is_not_there_yet(files: Path) -> None:
    own = str(Path("out/studies/own.db").absolute())
    assert cli.main([*search(files, trials=2), "--storage", f"sqlite:///{own}"]) == cli.FOUND
    assert Path(own).exists()
    assert not Path("out/study.db").exists()


def exported(found: Mapping[str, str]) -> set[str]:
    """Names, without the models that may still become the best."""
    return {name for name in found if not name.startswith("contenders/")}


@pytest.mark.slow
@pytest.mark.parametrize("full_at", [1, 3, 9])
def test_a_full_disk_leaves_what_was_whole(
    full_at: int, files: Path, searched: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search goes on until the disk is full; then, with space on it, to its end."""
    shutil.copytree(searched, "out")
    calls, before = [], contents(Path("out"))

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        assert cli.main(search(files, trials=4)) == cli.BAD_INPUT
    told = capfd.readouterr().err
    check(told)
    assert says(told, ["cannot write out/", "No space left on device", "free some space there"])
    assert exported(contents(Path("out"))) == exported(before)
    assert cli.main(["verify", "out"]) == cli.FOUND
    assert cli.main(search(files, trials=4)) == cli.FOUND
    assert sum(json.loads(Path("out/summary.json").read_text(encoding="utf-8"))["trials"].values()) == 4


LIMITED = """
import resource, sys
from mixq import cli

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_limit_on_file_size_leaves_what_was_whole(files: Path, searched: Path) -> None:
    """It stops the study's SQLite file too, which `atomic` does not write."""
    shutil.copytree(searched, "out")
    limit = (searched / "study.db").stat().st_size // 2
    command = [sys.executable, "-c", LIMITED, str(limit), *search(files, trials=4)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (cli.BAD_INPUT, "")
    check(done.stderr)
    assert says(done.stderr, ["the study storage sqlite:///", "disk I/O error"])
    assert cli.main(["verify", "out"]) == cli.FOUND
    assert cli.main(search(files, trials=4)) == cli.FOUND
