"""A search that is given again goes on, and one that is stopped leaves everything whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mixq
from mixq.errors import InputError
from tests.end_to_end.blobs import FILES, ROOT, SPACE, TASK, TRIALS, Searched, counted, written

pytestmark = pytest.mark.slow


def test_the_same_again_evaluates_nothing(searched: Searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a copy of the folder, whose summary is written anew."""
    out = tmp_path / "copy"
    shutil.copytree(searched.folder, out)
    before = {name: (out / name).read_bytes() for name in ("best.onnx", "best.json", "certificate.json")}
    seen = counted(monkeypatch)
    again = mixq.search(TASK, searched.space, out, trials=TRIALS, quiet=True)
    assert seen == []
    assert list(again.trials) == list(searched.result.trials)
    assert before == {name: (out / name).read_bytes() for name in before}


def test_more_trials_go_on(searched: Searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a copy of the folder, which needs no trial repeated."""
    out = tmp_path / "copy"
    shutil.copytree(searched.folder, out, ignore=shutil.ignore_patterns("ml*"))
    seen = counted(monkeypatch)
    more = mixq.search(TASK, searched.space, out, trials=TRIALS + 2, tracking="none", quiet=True)
    assert list(more.trials[:TRIALS]) == list(searched.result.trials)
    new = [trial.config.id for trial in more.trials[TRIALS:]]
    assert len(new) == 2
    untrained = {trial.config.id for trial in more.trials[TRIALS:] if not trial.config.qat_layers}
    assert untrained <= set(seen)  # what is not worth training is let go before it is evaluated
    assert not {trial.config.id for trial in searched.result.trials} & set(new)
    assert mixq.verify(out).ok


def test_another_search_under_the_same_name_is_refused(searched: Searched) -> None:
    with pytest.raises(InputError, match="'Blobs' was made for something else"):
        mixq.search(TASK, searched.space, searched.folder, max_drop=0.5, trials=TRIALS, quiet=True)


def started(folder: Path, space: Path) -> subprocess.Popen[str]:
    """`mixq search` in a process of its own."""
    arguments = ("search", TASK, "--space", space, "--out", folder, "--trials", "200", "--tracking", "none")
    return subprocess.Popen(
        [sys.executable, "-m", "mixq.cli", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not written in {seconds} s"
        time.sleep(0.05)


def test_sigterm_ends_a_search_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, space = tmp_path / "out", written(tmp_path, SPACE)
    process = started(out, space)
    wait_for(out / "summary.json")  # written after the first trial
    process.send_signal(signal.SIGTERM)
    printed, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert "stopped; the same command goes on from here" in shown
    assert "everything is in" in printed
    for name in set(FILES) - {"sensitivity.csv"}:  # it may end before the layers are analyzed
        assert (out / name).stat().st_size > 0, name
    assert mixq.verify(out).ok
    summary = json.loads((out / "summary.json").read_text())
    done = sum(summary["trials"].values())
    assert done >= 1
    assert summary["trials"]["failed"] == 0
    seen = counted(monkeypatch)
    again = mixq.search(TASK, space, out, trials=done + 1, tracking="none", quiet=True)
    assert len(again.trials) == done + 1
    assert len(set(seen)) <= 2  # the new one; and the best, where it has to be exported anew
