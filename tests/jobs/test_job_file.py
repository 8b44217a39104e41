"""Job files: read with their lines, paths from their folder, run as a search; events as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixq import cli
from mixq.errors import InputError
from mixq.job_file import load_job
from tests.bad_input.conftest import files, here, searched  # noqa: F401  # the user's files are these tests' too
from tests.bad_input.refusal import check, refusal, says

NEEDED = "task: task.py:Tiny\nspace: space.yaml\nout: out\n"

# What stands in the file, and what the message must say.
BAD: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["a job is a mapping with `task:`, `space:` and `out:`", "experiments/jobs/digits.yaml"]),
    "no space": ("task: a.py:A\nout: out\n", ["line 1: space: required, but missing"]),
    "unknown key": (NEEDED + "trials: 3\n", ["line 4: trials: unknown field; known: budget, confidence"]),
    "unknown budget": (
        NEEDED + "budget: {hours: 3}\n",
        ["line 4: budget.hours: unknown field; known: timeout, trials"],
    ),
    "no trials": (NEEDED + "budget:\n  trials: 0\n", ["line 5: budget.trials: ", "greater than or equal to 1 (got 0)"]),
    "no threads": (NEEDED + "threads: none\n", ["line 4: threads: ", "valid integer"]),
    "no workers": (NEEDED + "workers: 0\n", ["line 4: workers: ", "greater than or equal to 1 (got 0)"]),
    "sampler": (NEEDED + "sampler: best\n", ["line 4: sampler: ", "'guided', 'tpe' or 'gp' (got 'best')"]),
    "twice": (NEEDED + "out: other\n", ["line 4: out is given twice; keep one"]),
    "NUL": (NEEDED + 'study: "a\\0b"\n', ["line 4: study: must be printable text"]),
    "no text": (NEEDED + "study: ''\n", ["line 4: study: must be printable text, and not empty"]),
    "missing task": (NEEDED, ["there is no file ", "task.py; TASK is file.py:Class"]),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("here")
def test_a_job_that_cannot_be_used(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    text, told = BAD[name]
    Path("job.yaml").write_text(text, encoding="utf-8")
    Path("space.yaml").write_text("precisions: [fp32]\n", encoding="utf-8")
    assert says(refusal(["run", "job.yaml"], capfd), told)


def test_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(NEEDED + "storage: sqlite:///a.db\ntracking: sqlite:////b.db\n")
    job = load_job(tmp_path / "job.yaml")
    assert (job.task, job.space) == (f"{tmp_path}/task.py:Tiny", f"{tmp_path}/space.yaml")
    assert (job.out, job.storage, job.tracking) == (f"{tmp_path}/out", f"sqlite:///{tmp_path}/a.db", "sqlite:////b.db")


def test_names_of_modules_and_other_urls_stay(tmp_path: Path) -> None:
    text = "task: package.module:Task\nspace: /s.yaml\nout: /out\nstorage: postgresql://host/x\ntracking: none\n"
    (tmp_path / "job.yaml").write_text(text)
    job = load_job(tmp_path / "job.yaml")
    assert (job.task, job.space, job.out) == ("package.module:Task", "/s.yaml", "/out")
    assert (job.storage, job.tracking) == ("postgresql://host/x", "none")


def test_a_job_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the job"):
        load_job(tmp_path / "job.yaml")


def job_of(folder: Path) -> Path:
    """A job beside the user's files, whose results lie in the current folder."""
    text = NEEDED.replace("out: out", f"out: {Path.cwd()}/out")
    path = folder / "job.yaml"
    path.write_text(f"{text}budget: {{trials: 2}}\nstudy: tiny\ntracking: none\n", encoding="utf-8")
    return path


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_job_tells_what_happens(files: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert cli.main(["run", str(job_of(files)), "--json"]) == cli.FOUND
    said, told = capfd.readouterr()
    found = events(said)
    names = [event["event"] for event in found]
    assert names[:2] == ["started", "captured"]
    assert names[-1] == "finished"
    assert names.count("trial") == 2
    assert "best" in names
    assert "capturing" in told
    assert found[1]["layers"] == 3
    summary = json.loads(Path(found[-1]["summary"]).read_text(encoding="utf-8"))
    best = [event for event in found if event["event"] == "best"][-1]
    assert best["config_id"] == summary["best"]["config_id"]
    assert best["size_bytes"] == summary["best"]["size_bytes"]
    assert (found[-1]["exit_code"], found[-1]["feasible"]) == (cli.FOUND, True)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_storage_may_stand_in_the_environment(
    files: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Unless the job names one."""
    monkeypatch.setenv("MIXQ_STORAGE", "sqlite:///elsewhere.db")
    path = job_of(files)
    assert cli.main(["run", str(path), "--quiet"]) == cli.FOUND
    assert Path("elsewhere.db").is_file()
    path.write_text(path.read_text(encoding="utf-8") + "storage: garbage\n", encoding="utf-8")
    assert says(refusal(["run", str(path), "--quiet"], capfd), ["the study storage garbage cannot be opened"])


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_what_a_task_prints_is_no_event(files: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    path = job_of(files)
    text = path.read_text(encoding="utf-8").replace("task.py:Tiny", "loud.py:Loud")
    path.write_text(text, encoding="utf-8")
    loud = "from task import Tiny\n\n\nclass Loud(Tiny):\n    def __init__(self):\n        print('hello')\n"
    (files / "loud.py").write_text(loud, encoding="utf-8")
    assert cli.main(["run", str(path), "--json", "--quiet"]) == cli.FOUND
    said, told = capfd.readouterr()
    assert "hello" in told
    assert {event["event"] for event in events(said)} >= {"started", "finished"}


@pytest.mark.usefixtures("here")
def test_a_search_that_is_refused_says_so_in_its_last_event(files: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    arguments = ["search", f"{files}/task.py:NoHoldout", "--space", f"{files}/space.yaml", "--out", "out", "--json"]
    assert cli.main([*arguments, "--quiet", "--tracking", "none"]) == cli.BAD_INPUT
    said, told = capfd.readouterr()
    last = events(said)[-1]
    assert (last["event"], last["exit_code"], last["summary"]) == ("finished", cli.BAD_INPUT, None)
    assert "NoHoldout.batches('holdout') yields nothing" in last["error"]
    check(told)
    assert not Path("out").exists()
