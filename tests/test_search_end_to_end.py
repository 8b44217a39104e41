"""A whole search, PTQ and QAT in one space, by function and by command line: files, resuming, stopping, verifying."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pandas as pd
import pytest
import torch

import mixq
from mixq.certificate import Certificate
from mixq.cli import main
from mixq.config import MixedPrecisionConfig, Precision
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.searcher.trial import Trial
from mixq.task import Array, Inputs, Outputs, Task

ROOT = Path(__file__).parent.parent
TASK = "tests.test_search_end_to_end:Blobs"
TRIALS = 12
FILES = (
    "best.onnx",
    "best.json",
    "probe.npz",
    "certificate.json",
    "summary.json",
    "pareto.csv",
    "sensitivity.csv",
    "report.html",
    "study.db",
)
SPACE = """
precisions: [fp32, bf16, int8]
stages: [ptq, qat]
training: {steps: [3], learning_rate: [0.00001]}
objectives: [latency, size]
constraints: {max_drop: 0.05}
"""
IMPOSSIBLE = """
precisions: [fp32, int8]
constraints: {max_drop: 0, max_latency_ms: 0.000001}
"""


class BlobsNetwork(torch.nn.Module):
    """Three layers with fixed random weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 32, 3, stride=2)
        self.classifier = torch.nn.Linear(32, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.second(torch.relu(self.first(image))))
        scores: torch.Tensor = self.classifier(found.mean((2, 3)))
        return scores


class Blobs(Task):
    """Noise images; the right class is the one that the network finds in FP32."""

    primary = "top1"

    def model(self) -> torch.nn.Module:
        return BlobsNetwork().eval()

    def calibration(self) -> Iterator[Inputs]:
        yield {"image": images(0, 32)}

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield labelled(split)

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        (scores,) = outputs.values()
        return {"top1": float(np.mean(scores.argmax(axis=1) == targets))}


def images(seed: int, rows: int) -> Array:
    """Each with a level of its own, so that classes differ."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows, 3, 24, 24)) + 2 * rng.standard_normal((rows, 3, 1, 1))
    return noise.astype(np.float32)


def labelled(split: str) -> tuple[dict[str, Array], Array]:
    inputs = images(1 if split == "search" else 2, 60)
    with torch.inference_mode():
        return {"image": inputs}, BlobsNetwork()(torch.from_numpy(inputs)).numpy().argmax(1)


@dataclass(frozen=True)
class Searched:
    """A finished search, and the space's file that it was made with."""

    result: mixq.SearchResult
    space: Path

    @property
    def folder(self) -> Path:
        return self.result.folder

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return found


def written(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def _short_timing() -> Iterator[None]:
    """Time matters to no test here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixq.latency.PATIENCE", 1)
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """By the function, everything at its default."""
    folder = tmp_path_factory.mktemp("searched")
    space = written(folder, SPACE)
    return Searched(mixq.search(TASK, space, folder / "out", trials=TRIALS, quiet=True), space)


def test_every_file_is_written(searched: Searched) -> None:
    for name in FILES:
        assert (searched.folder / name).stat().st_size > 0, name


def test_the_summary_has_the_fields_of_the_design(searched: Searched) -> None:
    summary = searched.json("summary.json")
    assert summary == searched.result.summary
    wanted = {
        "": "task study runtime machine threads seed baseline best trials wall_s time_to_best_s feasible",
        "baseline": "metric latency_ms size_bytes",
        "best": "metric drop latency_ms speedup size_bytes compression config_id precisions holdout",
        "trials": "complete pruned failed",
    }
    for part, names in wanted.items():
        assert set(names.split()) <= (summary[part] if part else summary).keys()
    assert {"metric", "drop", "drop_interval"} <= summary["best"]["holdout"].keys()
    assert (summary["task"], summary["study"], summary["runtime"]) == (TASK, "Blobs", "openvino")
    assert (summary["threads"], summary["seed"], summary["feasible"]) == (1, 0, True)
    assert summary["baseline"]["metric"] == 1
    assert summary["trials"]["complete"] + summary["trials"]["failed"] == TRIALS
    assert 0 < summary["time_to_best_s"] <= summary["wall_s"]


def test_summary_certificate_configuration_and_study_agree(searched: Searched) -> None:
    best, baseline = searched.json("summary.json")["best"], searched.json("summary.json")["baseline"]
    certificate = Certificate.load(searched.folder / "certificate.json")
    config = MixedPrecisionConfig.load(searched.folder / "best.json")
    trial = searched.result.best
    assert trial is not None
    assert trial.evaluation is not None
    assert best["config_id"] == certificate.config_id == config.id == trial.config.id
    assert best["metric"] == certificate.measured["metric"] == trial.evaluation.metric
    assert best["drop"] == trial.evaluation.drop == pytest.approx(baseline["metric"] - best["metric"])
    assert best["drop"] <= 0.05 + 1e-9
    assert best["speedup"] == trial.evaluation.speedup.median
    assert best["size_bytes"] == (searched.folder / "best.onnx").stat().st_size == certificate.files["best.onnx"].size
    assert best["compression"] == pytest.approx(baseline["size_bytes"] / best["size_bytes"])
    assert best["precisions"] == {p.value: n for p in Precision if (n := len(config.layers_with(p)))}
    assert sum(best["precisions"].values()) == 3
    assert trial in searched.result.trials


def test_the_exported_file_has_the_metric_that_is_reported(searched: Searched) -> None:
    """Opened with plain OpenVINO, as the certificate says."""
    how = Certificate.load(searched.folder / "certificate.json").open
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(searched.folder / "best.onnx"), "CPU", dict(how.options))
    summary = searched.json("summary.json")
    for split, reported in (("search", summary["best"]), ("holdout", summary["best"]["holdout"])):
        inputs, targets = labelled(split)
        scores = compiled(inputs)[0]
        assert float(np.mean(scores.argmax(1) == targets)) == reported["metric"]


def test_calibration_and_training_are_tried_in_one_space(searched: Searched) -> None:
    stages = {name for trial in searched.result.trials for name in trial.config.counts()}
    assert {"fp32", "int8", "int8-qat"} <= stages
    assert {trial.state for trial in searched.result.trials} == {"complete"}
    trained = [t for t in searched.result.trials if t.config.qat_layers and t.evaluation is not None]
    assert trained
    assert all(t.evaluation is not None and t.evaluation.seconds["train"] > 0 for t in trained)


def test_the_tables_have_a_row_each(searched: Searched) -> None:
    sensitivity = pd.read_csv(searched.folder / "sensitivity.csv")
    assert sorted(sensitivity["layer"]) == ["classifier", "first", "second"]
    pareto = pd.read_csv(searched.folder / "pareto.csv")
    assert 0 < len(pareto) <= TRIALS


def test_the_folder_is_whole(searched: Searched) -> None:
    found = mixq.verify(searched.folder)
    assert found.ok, [check for check in found.checks if not check.ok]


def counted(patch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the configurations that are evaluated from now on."""
    seen: list[str] = []
    evaluate = Evaluator.evaluate

    def note(self: Evaluator, candidate: Any) -> Any:
        seen.append(candidate.config.id)
        return evaluate(self, candidate)

    patch.setattr(Evaluator, "evaluate", note)
    return seen


def test_the_same_again_evaluates_nothing(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (searched.folder / name).read_bytes() for name in ("best.onnx", "best.json", "certificate.json")}
    seen = counted(monkeypatch)
    again = mixq.search(TASK, searched.space, searched.folder, trials=TRIALS, quiet=True)
    assert seen == []
    assert list(again.trials) == list(searched.result.trials)
    assert before == {name: (searched.folder / name).read_bytes() for name in before}


def test_more_trials_go_on(searched: Searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a copy of the folder, which needs no trial repeated."""
    out = tmp_path / "copy"
    shutil.copytree(searched.folder, out, ignore=shutil.ignore_patterns("ml*"))
    seen = counted(monkeypatch)
    more = mixq.search(TASK, searched.space, out, trials=TRIALS + 2, tracking="none", quiet=True)
    assert list(more.trials[:TRIALS]) == list(searched.result.trials)
    new = [trial.config.id for trial in more.trials[TRIALS:]]
    assert len(new) == 2
    assert set(new) <= set(seen)
    assert not {trial.config.id for trial in searched.result.trials} & set(new)
    assert mixq.verify(out).ok


def test_another_search_under_the_same_name_is_refused(searched: Searched) -> None:
    with pytest.raises(InputError, match="'Blobs' was made for something else"):
        mixq.search(TASK, searched.space, searched.folder, max_drop=0.5, trials=TRIALS, quiet=True)


def command(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command line, on ONNX Runtime; its folder."""
    folder = tmp_path_factory.mktemp("commanded")
    space = written(folder, SPACE)
    options = ("--runtime", "onnxruntime", "--trials", "10", "--tracking", "none", "--quiet", "--sampler", "tpe")
    assert command("search", TASK, "--space", space, "--out", folder / "out", *options) == 0
    return folder / "out"


def test_the_command_line_does_the_same(commanded: Path) -> None:
    for name in FILES:
        assert (commanded / name).stat().st_size > 0, name
    summary = json.loads((commanded / "summary.json").read_text())
    assert (summary["runtime"], summary["trials"]["complete"]) == ("onnxruntime", 10)
    assert command("verify", commanded) == 0


def test_what_onnx_runtime_reports_a_plain_session_gives(commanded: Path) -> None:
    how = Certificate.load(commanded / "certificate.json").open
    options = onnxruntime.SessionOptions()
    for key, value in how.options.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(commanded / "best.onnx", options, providers=["CPUExecutionProvider"])
    inputs, targets = labelled("search")
    (scores,) = session.run(None, inputs)
    summary = json.loads((commanded / "summary.json").read_text())
    assert float(np.mean(scores.argmax(1) == targets)) == summary["best"]["metric"]


def test_what_a_runtime_cannot_run_is_said_once(
    commanded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--runtime", "onnxruntime", "--trials", "1", "--tracking", "none")
    space = written(tmp_path, SPACE)
    assert command("search", TASK, "--space", space, "--out", tmp_path / "out", *options) == 0
    shown = capsys.readouterr().err
    assert shown.count("left out of the search") == 1
    assert "onnxruntime cannot run bf16: ONNX Runtime's CPU provider has no BF16 kernels" in shown


def test_a_summary_is_printed(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("show", searched.folder) == 0
    shown = capsys.readouterr().out
    summary = searched.json("summary.json")
    assert f"{summary['best']['speedup']:.2f}× as fast as FP32" in shown
    assert summary["best"]["config_id"] in shown
    assert all(name in shown for name in ("first", "second", "classifier"))


def test_evaluate_measures_the_exported_configuration(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", TASK, searched.folder / "best.json", "--json", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    best = searched.json("summary.json")["best"]
    assert found["evaluation"]["metric"] == best["metric"]
    assert found["evaluation"]["size_bytes"] == best["size_bytes"]
    assert found["holdout"] == best["holdout"]
    assert found["robustness"].keys() == {"fp32", "config"}


def test_evaluate_prints_a_table(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", TASK, searched.folder / "best.json", "--quiet") == 0
    shown = capsys.readouterr().out
    assert "speedup_median" in shown
    assert "under gaussian_noise" in shown


def test_export_writes_the_same_bytes_again(searched: Searched, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert command("export", TASK, searched.folder / "best.json", "--out", out, "--quiet") == 0
    assert (out / "best.onnx").read_bytes() == (searched.folder / "best.onnx").read_bytes()
    assert command("verify", out) == 0


def test_diff_names_what_differs(searched: Searched, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials: Sequence[Trial] = searched.result.trials
    left = next(trial.config for trial in trials if trial.config.counts() == {"fp32": 3})
    right = next(trial.config for trial in trials if trial.config.counts() == {"int8": 3})
    paths = [tmp_path / "left.json", tmp_path / "right.json"]
    for path, config in zip(paths, (left, right), strict=True):
        path.write_text(config.to_json(), encoding="utf-8")
    assert command("diff", *paths) == 0
    shown = capsys.readouterr().out
    assert left.id in shown
    assert shown.count("int8") == 3
    assert command("diff", paths[0], paths[0]) == 0
    assert "no difference" in capsys.readouterr().out


def test_analyze_ranks_the_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("analyze", TASK, "--schemes", "int8", "--out", tmp_path / "out", "--quiet") == 0
    shown = capsys.readouterr().out
    assert "Kendall" in shown
    table = pd.read_csv(tmp_path / "out" / "sensitivity.csv")
    assert sorted(table["layer"]) == ["classifier", "first", "second"]
    assert (tmp_path / "out" / "sensitivity.png").stat().st_size > 0


def test_devices_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("devices") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:3] == ["runtime", "precision", "executed"]
    assert len(shown) == 1 + 2 * len(Precision)


def test_where_nothing_is_feasible_fp32_is_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ("--trials", "5", "--tracking", "none", "--quiet")
    assert command("search", TASK, "--space", written(tmp_path, IMPOSSIBLE), "--out", out, *options) == 3
    assert "nothing that met the constraints" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["feasible"], summary["best"], summary["trials"]["complete"]) == (False, None, 5)
    assert MixedPrecisionConfig.load(out / "best.json").counts() == {"fp32": 3}
    session = onnxruntime.InferenceSession(out / "best.onnx", providers=["CPUExecutionProvider"])
    inputs, _ = labelled("search")
    with torch.inference_mode():
        wanted = BlobsNetwork()(torch.from_numpy(inputs["image"])).numpy()
    np.testing.assert_allclose(session.run(None, inputs)[0], wanted, rtol=1e-4, atol=1e-5)
    assert command("verify", out) == 0
    assert command("show", out) == 0


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
    for name in FILES:
        assert (out / name).stat().st_size > 0, name
    assert mixq.verify(out).ok
    summary = json.loads((out / "summary.json").read_text())
    done = summary["trials"]["complete"]
    assert done >= 1
    assert summary["trials"]["failed"] == 0
    seen = counted(monkeypatch)
    again = mixq.search(TASK, space, out, trials=done + 1, tracking="none", quiet=True)
    assert len(again.trials) == done + 1
    assert len(set(seen)) <= 2  # the new one; and the best, where it has to be exported anew
