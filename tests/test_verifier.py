"""An untouched export passes in a process that knows nothing else; every kind of tampering is found and named."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixq import machine
from mixq.certificate import CERTIFICATE, CONFIG, FILES, MODEL, PROBE
from mixq.config import MixedPrecisionConfig
from mixq.errors import InputError
from mixq.graph.model import deserialize, serialize
from mixq.probe import Probe
from mixq.runtimes import NAMES
from mixq.verifier import FP32_TOLERANCE, LOW_PRECISION_TOLERANCE, Verification, verify
from tests.export_helpers import MIXED, OTHER, exported, forge, measured, read_certificate, write_certificate

FRESH = """
import json, sys
from mixq.verifier import verify

found = verify(sys.argv[1])
assert "torch" not in sys.modules, "verify must not need torch"
print(json.dumps([[check.name, check.ok, check.detail] for check in found.checks]))
"""

CHECKS = [*FILES, "config", "onnx", "runtime", "machine", "outputs", "kernels"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("export"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def details(found: Verification) -> dict[str, str]:
    """Name → detail of the checks that are not ok, but for those that only follow from others."""
    return {c.name: c.detail for c in found.checks if not c.ok and not c.detail.startswith("not checked")}


def edit_certificate(folder: Path, *path: str | int, value: object) -> None:
    certificate = read_certificate(folder)
    inner: Any = certificate
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    write_certificate(folder, certificate)


def edit_probe(folder: Path, change: Callable[[Probe], Probe]) -> None:
    forge(folder, PROBE, change(Probe.from_bytes((folder / PROBE).read_bytes())).to_bytes())


def scaled(factor: float) -> Callable[[Probe], Probe]:
    """Outputs that are off by a relative error."""

    def change(probe: Probe) -> Probe:
        return replace(probe, outputs={n: (v * np.float32(1 + factor)) for n, v in probe.outputs.items()})

    return change


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
def test_an_untouched_export_passes_in_a_fresh_process_without_torch(tmp_path: Path, runtime: str) -> None:
    exported(tmp_path, runtime=runtime)
    said = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    checks = json.loads(said.stdout)
    assert [name for name, _, _ in checks] == CHECKS
    assert all(ok for _, ok, _ in checks), checks
    assert {name: detail for name, _, detail in checks}["outputs"] == "bit-equal on 4 probe rows"


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    found = verify(folder)
    assert "is not the file that the certificate describes (other bytes)" in details(found)[name]
    assert [check.name for check in found.checks] == CHECKS
    assert set(details(found)) == {name}


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-3])
    assert f"({len(data) - 3} bytes instead of {len(data)})" in details(verify(folder))[name]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    found = verify(folder)
    assert details(found) == {name: f"{name} cannot be read: No such file or directory; export again"}
    followers = [check for check in found.checks if check.detail == f"not checked, because of {name}"]
    assert followers
    assert not any(check.ok for check in followers)


def test_the_configuration_of_another_model_is_found(folder: Path) -> None:
    config = measured(MIXED)[0].config
    other = MixedPrecisionConfig(model="0" * 16, schemes=config.schemes)
    forge(folder, CONFIG, other.to_json().encode())
    assert details(verify(folder))["config"].startswith(f"best.json is configuration {other.id}, the certificate is")


def test_other_schemes_are_found_even_where_all_ids_agree(folder: Path) -> None:
    other = measured(OTHER)[0].config
    forge(folder, CONFIG, other.to_json().encode())
    edit_certificate(folder, "config_id", value=other.id)
    assert details(verify(folder)) == {
        "config": "best.json and the certificate ask different schemes for classifier, first"
    }


@pytest.mark.parametrize("text", [b"{}", b"\xff\xfe", b'{"model": '])
def test_a_file_that_is_no_configuration_is_found(folder: Path, text: bytes) -> None:
    forge(folder, CONFIG, text)
    assert details(verify(folder))["config"].startswith("best.json")


def test_another_model_is_found_by_its_outputs(folder: Path) -> None:
    forge(folder, MODEL, measured(OTHER)[0].model)
    found = details(verify(folder))
    assert found.keys() == {"outputs", "kernels"}
    assert "first executes in fp32, the certificate says int8" in found["kernels"]


def test_what_is_no_onnx_is_found(folder: Path) -> None:
    forge(folder, MODEL, b"\x08\x0a not a model")
    found = verify(folder)
    assert details(found).keys() == {"onnx"}
    assert "\n" not in details(found)["onnx"]


def test_what_the_onnx_checker_refuses_is_found(folder: Path) -> None:
    model = deserialize((folder / MODEL).read_bytes())
    model.graph[0].op_type = "NoSuchOp"
    forge(folder, MODEL, serialize(model))
    assert "the ONNX checker refuses the model" in details(verify(folder))["onnx"]


def test_edited_outputs_are_found(folder: Path) -> None:
    edit_probe(folder, scaled(1e-6))
    found = details(verify(folder))
    assert found.keys() == {"outputs"}
    assert "outputs differ from those in probe.npz by" in found["outputs"]
    assert found["outputs"].endswith("where it was exported, none may differ")


def test_outputs_of_another_shape_are_found(folder: Path) -> None:
    edit_probe(folder, lambda probe: replace(probe, outputs={n: v[:, 1:] for n, v in probe.outputs.items()}))
    assert "the model's outputs are" in details(verify(folder))["outputs"]


def test_edited_inputs_are_found(folder: Path) -> None:
    edit_probe(folder, lambda probe: replace(probe, inputs={n: -v for n, v in probe.inputs.items()}))
    assert details(verify(folder)).keys() == {"outputs"}


def test_inputs_of_another_type_are_found(folder: Path) -> None:
    edit_probe(folder, lambda probe: replace(probe, inputs={n: v.astype(np.int32) for n, v in probe.inputs.items()}))
    assert "have not the names, types and shapes" in details(verify(folder))["outputs"]


def test_another_input_name_is_found(folder: Path) -> None:
    edit_certificate(folder, "inputs", 0, "name", value="picture")
    assert "the certificate says ['picture']" in details(verify(folder))["onnx"]


@pytest.mark.parametrize(
    ("path", "value"), [(("open", "version"), "1999.1"), (("machine", "cpu"), "Z80"), (("machine", "new key"), [1])]
)
def test_elsewhere_small_differences_are_accepted_and_stated(
    folder: Path, path: tuple[str, str], value: object
) -> None:
    edit_certificate(folder, *path, value=value)
    edit_probe(folder, scaled(LOW_PRECISION_TOLERANCE / 2))
    found = verify(folder)
    said = {check.name: check.detail for check in found.checks}
    assert found.ok, details(found)
    assert f"{value} → " in said["machine"]
    assert "outputs are compared with a tolerance" in said["machine"]
    assert "outputs differ from those in probe.npz by 5.0e-03 of the largest value" in said["outputs"]
    assert ("exported with 1999.1" in said["runtime"]) == (path[0] == "open")


def test_elsewhere_large_differences_are_not(folder: Path) -> None:
    edit_certificate(folder, "open", "version", value="1999.1")
    edit_probe(folder, scaled(LOW_PRECISION_TOLERANCE * 2))
    assert details(verify(folder))["outputs"].endswith("at most 1e-02 is accepted")
    edit_probe(folder, lambda probe: replace(probe, outputs={n: v * np.nan for n, v in probe.outputs.items()}))
    assert details(verify(folder)).keys() == {"outputs"}


def test_fp32_must_be_closer(tmp_path: Path) -> None:
    exported(tmp_path, {})
    edit_certificate(tmp_path, "open", "version", value="1999.1")
    edit_probe(tmp_path, scaled(FP32_TOLERANCE * 2))
    assert "outputs" in details(verify(tmp_path))


def test_another_python_is_not_another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.describe()
    monkeypatch.setattr(machine, "describe", lambda: {**here, "python": "4.0.0"})
    assert {c.name: c.detail for c in verify(folder).checks}["machine"].startswith("where it was exported")


def test_an_unknown_runtime_is_found(folder: Path) -> None:
    edit_certificate(folder, "open", "runtime", value="abacus")
    found = details(verify(folder))
    assert found.keys() == {"runtime"}
    assert "runtime 'abacus' is unknown; known: openvino" in found["runtime"]


def test_options_that_the_runtime_refuses_are_found(folder: Path) -> None:
    edit_certificate(folder, "open", "options", value={"NO_SUCH_OPTION": "1"})
    found = details(verify(folder))
    assert found.keys() == {"outputs", "kernels"}
    assert "NO_SUCH_OPTION" in found["outputs"]


def test_a_changed_precision_in_the_audit_is_found(folder: Path) -> None:
    edit_certificate(folder, "kernels", 1, "executed", value="fp32")
    assert details(verify(folder)) == {"kernels": "second executes in int8, the certificate says fp32"}


def test_a_changed_request_in_the_audit_is_found(folder: Path) -> None:
    edit_certificate(folder, "kernels", 1, "asked", value="bf16")
    assert details(verify(folder)) == {"config": "best.json and the certificate ask different schemes for second"}


def test_a_layer_missing_in_the_audit_is_found(folder: Path) -> None:
    edit_certificate(folder, "kernels", value=read_certificate(folder)["kernels"][1:])
    assert details(verify(folder)) == {"config": "best.json and the certificate ask different schemes for first"}


def test_without_a_certificate_there_is_nothing_to_compare_with(folder: Path) -> None:
    (folder / CERTIFICATE).unlink()
    with pytest.raises(InputError, match=r"certificate\.json: No such file or directory; give a folder that"):
        verify(folder)
    with pytest.raises(InputError, match="No such file or directory"):
        verify(folder / "missing")


def test_a_truncated_certificate_is_refused_wherever_it_ends(folder: Path) -> None:
    whole = (folder / CERTIFICATE).read_bytes().rstrip()
    for end in range(0, len(whole), 97):
        (folder / CERTIFICATE).write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"is not a whole certificate: .*; export again"):
            verify(folder)


def test_a_certificate_of_another_format_or_other_files_is_refused(folder: Path) -> None:
    edit_certificate(folder, "format", value=2)
    with pytest.raises(InputError, match="format: "):
        verify(folder)
    edit_certificate(folder, "format", value=1)
    edit_certificate(folder, "files", value={})
    with pytest.raises(InputError, match=r"describes the files \[\] instead of best.onnx, best.json, probe.npz"):
        verify(folder)


def test_a_certificate_without_extra_has_an_empty_one(folder: Path) -> None:
    content = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
    del content["extra"]
    (folder / CERTIFICATE).write_text(json.dumps(content), encoding="utf-8")
    assert verify(folder).ok


def test_a_damaged_certificate_never_breaks_verify(folder: Path) -> None:
    """Random bytes of it are changed: a check that is not ok, an InputError or nothing, but no traceback."""
    whole, dice = (folder / CERTIFICATE).read_bytes(), random.Random(0)  # noqa: S311
    (folder / MODEL).unlink()  # nothing is compiled: this is about reading the certificate
    for _ in range(200):
        data = bytearray(whole)
        data[dice.randrange(len(data))] = dice.randrange(256)
        (folder / CERTIFICATE).write_bytes(data)
        with suppress(InputError):
            assert not verify(folder).ok
