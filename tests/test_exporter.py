"""What was measured is what is exported: the same bytes, and never files of two exports that look like one."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixq import machine
from mixq.certificate import CERTIFICATE, CONFIG, FILES, MODEL, PROBE, Certificate, FileMark
from mixq.config import MixedPrecisionConfig
from mixq.errors import InputError
from mixq.exporter import PROBE_ROWS, export
from mixq.probe import Probe
from mixq.runtimes import get_runtime
from mixq.verifier import verify
from tests.export_helpers import MIXED, OTHER, exported, measured, read_certificate
from tests.tiny import evaluator

ALL = (*FILES, CERTIFICATE)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("export"))


def test_the_exported_bytes_are_the_measured_ones(folder: Path) -> None:
    candidate, _ = measured(MIXED)
    assert sorted(path.name for path in folder.iterdir()) == sorted(ALL)
    assert (folder / MODEL).read_bytes() == candidate.model
    assert (folder / CONFIG).read_text(encoding="utf-8") == candidate.config.to_json()
    assert MixedPrecisionConfig.load(folder / CONFIG) == candidate.config


def test_the_probe_holds_calibration_rows_and_what_the_model_gives_on_them(folder: Path) -> None:
    probe = Probe.from_bytes((folder / PROBE).read_bytes())
    np.testing.assert_array_equal(probe.inputs["image"], evaluator().data.calibration[0]["image"][:PROBE_ROWS])
    candidate, _ = measured(MIXED)
    found = get_runtime("openvino").compile(candidate.model, 1, candidate.options).run(probe.inputs)
    for name, value in probe.outputs.items():  # in one batch: sums may come in another order
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_the_certificate_says_what_was_measured_and_how_to_open_it(folder: Path) -> None:
    candidate, evaluation = measured(MIXED)
    certificate = Certificate.load(folder / CERTIFICATE)
    assert certificate.config_id == candidate.config.id
    assert certificate.files == {name: FileMark.of((folder / name).read_bytes()) for name in FILES}
    how = certificate.open
    assert (how.runtime, how.threads, dict(how.options)) == ("openvino", 1, dict(candidate.options))
    assert how.version == evaluator().runtime.version
    assert certificate.machine == machine.describe()
    assert certificate.versions.keys() == {"mixq", "onnx", "numpy", "openvino"}
    assert certificate.measured["drop"] == evaluation.drop
    assert certificate.measured["size_bytes"] == len(candidate.model)
    assert certificate.measured["speedup"] == {
        "median": evaluation.speedup.median,
        "low": evaluation.speedup.low,
        "high": evaluation.speedup.high,
    }
    (mark,) = certificate.inputs
    assert (mark.name, mark.dtype, mark.row_shape) == ("image", "float32", (3, 12, 12))


def test_the_certificate_holds_the_kernel_audit(folder: Path) -> None:
    _, evaluation = measured(MIXED)
    records = Certificate.load(folder / CERTIFICATE).kernels
    assert [record.time_us for record in records] == [None] * 3
    assert tuple(record.layer for record in records) == evaluator().graph.layers
    assert [(r.layer.name, r.asked) for r in records] == [("first", "int8"), ("second", "int8"), ("classifier", "fp32")]
    assert [(r.executed, r.kernel) for r in records] == [(k.executed, k.kernel) for k in evaluation.kernels]


def test_the_kernels_times_are_certified_where_they_were_taken(tmp_path: Path) -> None:
    candidate, evaluation = measured(MIXED)
    kernels = evaluator().profile(candidate)
    export(evaluator(), candidate, replace(evaluation, kernels=kernels), tmp_path)
    times = [record.time_us for record in Certificate.load(tmp_path / CERTIFICATE).kernels]
    assert times == [kernel.time_us for kernel in kernels]
    assert all(times)


def test_the_fp32_model_can_be_the_answer(tmp_path: Path) -> None:
    assert verify(exported(tmp_path, {})).ok


def test_extra_values_and_non_finite_measures_make_valid_json(tmp_path: Path) -> None:
    candidate, evaluation = measured(MIXED)
    evaluation = replace(evaluation, output_mse=float("nan"), kl=float("inf"))
    export(evaluator(), candidate, evaluation, tmp_path, {"holdout": {"drop_interval": (0.0, np.float32(0.25))}})
    certificate = read_certificate(tmp_path)
    assert certificate["extra"] == {"holdout": {"drop_interval": [0.0, 0.25]}}
    assert (certificate["measured"]["output_mse"], certificate["measured"]["kl"]) == (None, None)
    assert verify(tmp_path).ok


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the certificate holds JSON values only: object is none"):
        export(evaluator(), *measured(MIXED), tmp_path, {"model": object()})
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_of_another_candidate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="export a candidate with the evaluation"):
        export(evaluator(), measured(MIXED)[0], measured(OTHER)[1], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_old_export_whole(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=rf"cannot write .*{ALL[at - 1]}: No space left on device; free some space"):
        exported(tmp_path, OTHER)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_explained() -> None:
    with pytest.raises(InputError, match=r"cannot write /proc/no/such/folder: .*; choose a folder"):
        exported(Path("/proc/no/such/folder"))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_kill_between_two_files_is_detected_and_exporting_again_repairs(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tmp_path)
    rename, calls = os.replace, []

    def die(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == at:
            raise KilledError
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KilledError):
            exported(tmp_path, OTHER)
    found = verify(tmp_path)
    assert found.ok == (at == 1)
    assert [check.ok for check in found.checks[: at - 1]] == [False] * (at - 1)
    assert read_certificate(tmp_path)["config_id"] == measured(MIXED)[0].config.id
    exported(tmp_path, OTHER)
    assert verify(tmp_path).ok
    assert read_certificate(tmp_path)["config_id"] == measured(OTHER)[0].config.id


def test_a_first_export_that_was_killed_has_no_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(source: Any, target: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KilledError):
            exported(tmp_path)
    with pytest.raises(InputError, match="No such file or directory"):
        verify(tmp_path)
    assert verify(exported(tmp_path)).ok
