"""The examples of experiments/jobs, each run by its own command on a small search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixq import cli
from mixq.job_file import load_job
from tests import exported

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "experiments" / "jobs"
MIXQ = '#!/bin/bash\nexec {python} -m mixq "$@" {more}\n'
SRUN = '#!/bin/bash\nfor i in ${SRUN_TASKS:-0}; do SLURM_PROCID=$i "$@"; done\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder laid out as the examples expect the project to be, with a task of a second."""
    exported.write(tmp_path)
    (tmp_path / "space.yaml").write_text("precisions: [fp32, int8]\nconstraints: {max_drop: 1}\n", encoding="utf-8")
    job = (
        "task: ../../task.py:Exported\nspace: ../../space.yaml\nout: ../../runs/out\n"
        "budget: {trials: 2}\ntracking: none\n"
    )
    for name, text in {
        "experiments/jobs/digits.yaml": job,
        ".venv/bin/mixq": MIXQ.format(python=sys.executable, more=""),
        "bin/mixq": MIXQ.format(python=sys.executable, more="--trials 2 --tracking none"),
        "bin/srun": SRUN,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    (tmp_path / "runs").mkdir()
    return tmp_path


def run(command: list[str], project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{project}/bin:{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "PROJECT": str(project), **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=project, env=env)


def last_event(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return found


STUDY = {"TASK": "task.py:Exported", "SPACE": "space.yaml", "STUDY": "small", "MIXQ_STORAGE": "sqlite:///small.db"}


def test_the_job_is_that_of_the_digits() -> None:
    job = load_job(JOBS / "digits.yaml")
    assert Path(job.task.rpartition(":")[0]).is_file()
    assert Path(job.space).is_file()


def test_the_line_for_cron(project: Path) -> None:
    (line,) = (text for text in (JOBS / "crontab").read_text(encoding="utf-8").splitlines() if text[:1].isdigit())
    done = run(["sh", "-c", line.split(None, 5)[5]], project)
    assert done.returncode == 0, done.stderr
    log = (project / "runs/digits_job.log").read_text(encoding="utf-8")
    assert last_event(log) == {
        "event": "finished",
        "exit_code": 0,
        "summary": str(project / "runs/out/summary.json"),
        "feasible": True,
    }


def test_the_script_for_slurm(project: Path) -> None:
    done = run(["bash", str(JOBS / "search.slurm")], project, **STUDY, OUT="runs/slurm")
    assert done.returncode == 0, done.stderr
    assert last_event(done.stdout)["exit_code"] == 0
    assert (project / "runs/slurm/best.onnx").is_file()


def test_the_script_for_slurm_wants_a_storage(project: Path) -> None:
    done = run(["bash", str(JOBS / "search.slurm")], project)
    assert done.returncode != 0
    assert "MIXQ_STORAGE: set MIXQ_STORAGE to the URL of a database" in done.stderr


def container() -> dict[str, Any]:
    job = yaml.safe_load((JOBS / "search.kubernetes.yaml").read_text(encoding="utf-8"))
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    (found,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_the_command_for_kubernetes(project: Path) -> None:
    command = [*container()["command"], *container()["args"]]
    done = run(command, project, **STUDY, OUT=str(project / "results"), JOB_COMPLETION_INDEX="0")
    assert done.returncode == 0, done.stderr
    assert last_event(done.stdout)["exit_code"] == 0
    assert (project / "results/summary.json").is_file()


def test_a_secret_comes_from_a_secret() -> None:
    storage = next(entry for entry in container()["env"] if entry["name"] == "MIXQ_STORAGE")
    assert "value" not in storage
    assert storage["valueFrom"]["secretKeyRef"]


WORKERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "slurm": (["bash", str(JOBS / "search.slurm")], {"SRUN_TASKS": "1"}),
    "kubernetes": ([*container()["command"], *container()["args"]], {"JOB_COMPLETION_INDEX": "1"}),
}


def test_workers_wait_for_their_search_and_end_with_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that cannot work end at once, and do not try again."""
    (project / "bin/mixq").write_text(MIXQ.format(python=sys.executable, more=""), encoding="utf-8")
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    search = ["search", "task.py:Exported", "--space", "space.yaml", "--out", "runs/out", "--study", STUDY["STUDY"]]
    options = ["--storage", STUDY["MIXQ_STORAGE"], "--trials", "2", "--tracking", "none", "--quiet"]
    wrong = {**STUDY, "TASK": "task.py:Missing"}
    with ThreadPoolExecutor() as pool:
        early, unfit = (
            [pool.submit(run, command, project, **study, **told) for command, told in WORKERS.values()]
            for study in (STUDY, wrong)
        )
        assert cli.main([*search, *options]) == cli.FOUND
        for worker in early:
            assert worker.result().returncode == 0, worker.result().stderr
        for worker in unfit:
            assert worker.result().returncode == cli.BAD_INPUT, worker.result().stderr
            assert worker.result().stderr.count("has no class Missing") == 1
