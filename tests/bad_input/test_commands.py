"""Options, arguments and configurations that cannot be used, through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixq import cli
from tests.bad_input.refusal import check, contents, refusal, says, search

OPTIONS = {
    "--runtime abacus": ["runtime 'abacus' is unknown", "known: openvino, onnxruntime"],
    "--threads 0": ["threads must be from 1 to", "got 0"],
    "--threads 1000": ["threads must be from 1 to", "got 1000"],
    "--threads many": ["argument --threads: invalid int value: 'many'", "mixq search --help"],
    "--max-drop -1": ["--max-drop", "greater than or equal to 0 (got -1.0)"],
    "--max-drop nan": ["--max-drop", "finite number (got nan)"],
    "--trials 0": ["trials must be at least 1", "got 0"],
    "--timeout nan": ["timeout", "nan"],
    "--seed -1": ["seed", "at least 0", "-1"],
    "--timeout 0": ["timeout", "positive", "0.0"],
    "--sampler best": ["--sampler", "'guided', 'tpe' or 'gp' (got 'best')"],
    "--space missing.yaml": ["cannot read the search space missing.yaml: No such file", "see search_spaces/cpu.yaml"],
    "--space {files}/field.yaml": ["field.yaml line 2: precision: unknown field", "known: activations, constraints"],
    "--space {files}/glob.yaml": ["no layer matches 'tail*' of the search space", "layers: first, second, head"],
    "--space {files}/bf16.yaml --runtime onnxruntime": ["no choice is left for first: onnxruntime cannot run bf16"],
    "--storage garbage": ["the study storage garbage cannot be opened", "give a URL of Optuna's, e.g. sqlite:///"],
    "--storage mysql://me:secret@host/x": ["mysql://me:***@host/x cannot be opened", "install"],
    "--storage sqlite:////proc/x.db": ["sqlite:////proc/x.db cannot be opened", "unable to open database file"],
    "--tracking garbage": ["cannot use 'garbage' as MLflow's tracking store", "e.g. sqlite:///runs/mlflow.db"],
    "--seed 2147483648": ["seed at least 0 and below 2147483648", "2147483648"],
    "--storage=": ["--storage must be printable text, got ''", "leave it out for its default"],
    "--study=": ["--study must be printable text, got ''"],
    "--study " + 600 * "x": ["--study must have at most 512 characters, got 600"],
    "--storage sqlite:///no/such/x.db": ["sqlite:///no/such/x.db cannot be opened", "e.g. sqlite:////folder"],
    "--storage oracle://me:secret@host": ["oracle://me:***@host cannot be opened", "install"],
    "--storage postgresql+nosuch://me:secret@host/x": ["postgresql+nosuch://me:***@host/x cannot be opened"],
    "--tracking=": ["--tracking must be printable text, got ''"],
    "--tracking sqlite:////proc/x.db": ["cannot use 'sqlite:////proc/x.db' as MLflow's", "give a SQLite file"],
    "--out=": ["--out must name a folder", "give . for the current one"],
    "--out " + 300 * "a": ["aaa: File name too long", "choose a folder"],
    "--out a?b": ["a folder with a question mark cannot hold the study: a?b"],
    "--space " + 300 * "a": ["aaa: File name too long", "see search_spaces/cpu.yaml"],
    "--confidence 1": ["constraints.confidence: Input should be less than 1 (got 1.0)"],
    "--out {files}/task.py": ["cannot write", "task.py: File exists", "choose a folder that you may write to"],
    "--out {files}/task.py/below": ["task.py/below: Not a directory", "choose a folder"],
    "--workers 0": ["workers must be at least 1, got 0"],
    "--workers two": ["argument --workers: invalid int value: 'two'"],
    "--workers 2 --storage sqlite:///:memory:": ["several workers need a storage in a file", "got sqlite:///:memory:"],
    "--workers 2 --storage mysql://me:secret@host/x": [
        "several workers need",
        "postgresql://",
        "mysql://me:***@host/x",
    ],
    "--workers 2 --storage sqlite:///{{a}}.db": ["the study storage sqlite:///{a}.db cannot be opened"],
    "--out /proc/mixq": ["cannot write /proc/mixq", "choose a folder"],
    "--out /sys/mixq": ["cannot write /sys/mixq", "choose a folder"],
}


def edited(change: Callable[[Any], object]) -> Callable[[str], str]:
    """Changes a configuration that is given as JSON."""

    def apply(text: str) -> str:
        config = json.loads(text)
        change(config)
        return json.dumps(config)

    return apply


def with_an_unknown_step(config: Any) -> None:
    config["schemes"]["head"]["precision"] = "int8"
    config["recipe"] = [{"name": "magic"}]


# How a good best.json is changed, and what the message must say; a file that would be empty is not written.
CONFIGS: dict[str, tuple[Callable[[str], str], list[str]]] = {
    "missing": (lambda text: "", ["cannot read the configuration missing: No such file", "give a best.json"]),
    "truncated": (lambda text: text[:200], ["truncated is not valid JSON (line ", "write it again"]),
    "unknown layer": (
        lambda text: text.replace('"first"', '"zeroth"'),
        ["unknown layers ['zeroth']", "known: first, second, head"],
    ),
    "missing layer": (
        edited(lambda config: config["schemes"].pop("head")),
        ["no scheme for the layers ['head']", "every layer needs one"],
    ),
    "other model": (
        edited(lambda config: config.update(model="0" * 16)),
        ["is for the model 0000000000000000, this one is", "search again, or use the task"],
    ),
    "unknown scheme": (
        edited(lambda config: config["schemes"]["head"].update(precision="int4")),
        ["schemes.head.precision: Input should be 'fp32', 'fp16', 'bf16' or 'int8' (got 'int4')"],
    ),
    "unknown kind": (
        edited(lambda config: config["schemes"]["head"].update(precision="int8", activation="dynamic")),
        ["cannot run layer 'head' as int8-dynamic", "by 128 values"],
    ),
    "unknown field": (
        lambda text: text.replace('"rest"', '"remainder"'),
        ["remainder: unknown field", "known: format"],
    ),
    "weight_only, trained": (
        edited(
            lambda config: config["schemes"]["head"].update(precision="int8", activation="weight_only", stage="qat")
        ),
        ["schemes.head: stage qat learns calibrated scales; weight_only layers have stage ptq"],
    ),
    "activation of fp32": (
        edited(lambda config: config["schemes"]["head"].update(precision="fp32", activation="dynamic")),
        ["schemes.head: stage and activation are for int8 layers only, not for fp32"],
    ),
    "unknown activation": (
        edited(lambda config: config["schemes"]["head"].update(precision="int8", activation="lazy")),
        ["schemes.head.activation: ", "'static', 'dynamic' or 'weight_only' (got 'lazy')"],
    ),
    "a key twice": (
        lambda text: text.replace('"format"', '"format": 1, "format"'),
        ["a key twice is not valid JSON ('format' is given twice); write it again"],
    ),
    "a list": (lambda text: "[]", ["(top level): must be a mapping of names to values, got list"]),
    "depth": (lambda text: 3000 * "[", ["depth is nested more than 50 levels deep"]),
    "whole depth": (lambda text: 99 * "[" + 99 * "]", ["is nested more than 50 levels deep"]),
    "a number of no end": (lambda text: text.replace("1", 5000 * "9", 1), ["a number of no end ", "4300 digits"]),
    "a large number": (lambda text: text.replace("1", 30 * "9", 1), ["of 100 bits; give one of at most 64"]),
    "half a character": (
        lambda text: text.replace('"head"', r'"\ud800"'),
        ["half a character (a lone surrogate) in '\\ud800'"],
    ),
    "unknown step": (edited(with_an_unknown_step), ["recipe step 'magic' is unknown", "known: equalize, calibrate"]),
}


COMMANDS = {
    "": ["the following arguments are required: COMMAND", "mixq --help"],
    "quantize": ["invalid choice: 'quantize'", "'analyze', 'search', 'run', 'worker', 'evaluate', 'export'"],
    "search {files}/task.py:Tiny --out out": ["required: --space", "mixq search --help"],
    "worker {files}/task.py:Tiny": ["required: --study", "mixq worker --help"],
    "worker {files}/task.py:Tiny --study a": ["give --storage", "or set MIXQ_STORAGE to it"],
    "worker {files}/task.py:Tiny --study a --storage sqlite:///none.db": [
        "there is no study storage sqlite:///none.db",
        "a mixq search that was started",
    ],
    "worker {files}/task.py:Tiny --study a --storage sqlite:///{searched}/study.db": [
        "there is no study 'a' in sqlite:///",
        "(there: tiny)",
    ],
    "worker {files}/task.py:OtherModel --study tiny --storage sqlite:///{searched}/study.db --quiet": [
        "the study 'tiny' was made for something else",
        "give another --study",
    ],
    "worker {files}/task.py:Nothing --study tiny --storage sqlite:///{searched}/study.db": ["no class Nothing"],
    "worker {files}/task.py:Tiny --study tiny --storage sqlite:///{searched}/study.db --out {files}/task.py": [
        "task.py: File exists",
        "choose a folder",
    ],
    "worker {files}/task.py:Tiny --study= --storage sqlite:///{searched}/study.db": ["--study must be printable text"],
    "verify {files}": ["cannot read", "certificate.json: No such file", "a folder that a search or an export"],
    "verify missing": ["missing/certificate.json"],
    "show {files}/net.onnx": ["the configuration", "net.onnx is no text", "give a best.json"],
    "show {files}/space.yaml": ["space.yaml is not valid JSON (line 1"],
    "show {files}": ["cannot read the configuration", "best.json: No such file"],
    "show {files}/strange": ["strange/summary.json"],
    "show " + 300 * "a": ["aaa: File name too long", "give a best.json"],
    "verify " + 300 * "a": ["certificate.json: File name too long"],
    "devices --threads 0": ["threads must be from 1 to"],
    "analyze {files}/task.py:Tiny --quiet --schemes int8-dynamic": ["openvino can run none of int8-dynamic"],
    "show missing": ["cannot read the configuration missing: No such file"],
    "diff {files}/space.yaml {searched}/best.json": ["space.yaml is not valid JSON"],
    "diff {searched}/best.json {searched}/summary.json": ["summary.json: model: required, but missing", " more"],
    "export {files}/task.py:Tiny {searched}/best.json --out {files}/task.py": ["task.py: File exists", "choose a"],
    "diff {searched}/best.json": ["required: right", "mixq diff --help"],
    "analyze {files}/task.py:Tiny --schemes nonsense": ["scheme 'nonsense' is unknown", "known: fp32, fp16"],
    "analyze {files}/task.py:Tiny --quiet --rows 0": ["rows must be at least 1", "got 0"],
    "analyze {files}/task.py:Tiny --quiet --out {files}/task.py": ["task.py: File exists", "choose a folder"],
    "analyze {files}/task.py:FewTargets --quiet --out out": ["yield one target a row"],
}


@pytest.mark.parametrize("options", list(OPTIONS))
def test_an_option_that_cannot_be_used(options: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert says(refusal([*search(files), *options.format(files=files).split()], capfd), OPTIONS[options])


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_cannot_be_used(
    name: str, command: str, files: Path, searched: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, told = CONFIGS[name]
    text = change((searched / "best.json").read_text(encoding="utf-8"))
    if text:
        Path(name).write_text(text, encoding="utf-8")
    arguments = [command, f"{files}/task.py:Tiny", name, "--quiet", *(["--out", "out"] if command == "export" else [])]
    assert says(refusal(arguments, capfd), told)


@pytest.mark.parametrize("arguments", list(COMMANDS))
def test_other_commands(arguments: str, files: Path, searched: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert says(refusal(arguments.format(files=files, searched=searched).split(), capfd), COMMANDS[arguments])


@pytest.mark.slow
def test_the_installed_command_says_the_same(files: Path, here: Path) -> None:
    command = str(Path(sys.executable).with_name("mixq"))
    for arguments in (["show", "missing"], ["search", "missing.py:Tiny", *search(files)[2:]], ["search"]):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (cli.BAD_INPUT, "")
        check(done.stderr)
        assert contents(here) == {}


def test_a_reader_that_goes_away_gets_no_traceback(searched: Path) -> None:
    """As in `mixq show ... | head`."""
    arguments = [str(Path(sys.executable).with_name("mixq")), "show", str(searched / "best.json")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == cli.FAILED
