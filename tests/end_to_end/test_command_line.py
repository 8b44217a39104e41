"""Every command, on what a search left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest

from mixq.certificate import Certificate
from mixq.config import Precision
from mixq.searcher.trial import Trial
from tests.end_to_end.blobs import FILES, SPACE, TASK, Searched, command, labelled, written


def test_the_command_line_does_the_same(commanded: Path) -> None:
    for name in FILES:
        assert (commanded / name).stat().st_size > 0, name
    summary = json.loads((commanded / "summary.json").read_text())
    assert (summary["runtime"], sum(summary["trials"].values())) == ("onnxruntime", 10)
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


@pytest.mark.slow
def test_what_a_runtime_cannot_run_is_said_once(
    commanded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--runtime", "onnxruntime", "--trials", "2", "--tracking", "none")
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


@pytest.mark.slow
def test_analyze_ranks_the_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("analyze", TASK, "--schemes", "int8", "--out", tmp_path / "out", "--quiet") == 0
    shown = capsys.readouterr().out
    assert "Kendall" in shown
    table = pd.read_csv(tmp_path / "out" / "sensitivity.csv")
    assert sorted(table["layer"]) == ["classifier", "first", "second"]
    assert (tmp_path / "out" / "sensitivity.png").stat().st_size > 0


@pytest.mark.slow
def test_devices_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("devices") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:3] == ["runtime", "precision", "executed"]
    assert len(shown) == 1 + 2 * len(Precision)
