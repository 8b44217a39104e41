"""Whatever is wrong with what the user brings: exit code 2, one message of three lines at most, and nothing written.

All through the real command line, in an empty current folder, on one small network in an .onnx file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mixq import cli, machine
from tests.helpers import Net

TASK = """
import sys
from pathlib import Path

import numpy as np
import torch

import mixq

HERE = Path(__file__).parent


def images(seed, rows=32):
    return np.random.default_rng(seed).normal(size=(rows, 3, 8, 8)).astype(np.float32)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


class Tiny(mixq.Task):
    primary = "top1"

    def model(self):
        return HERE / "net.onnx"

    def calibration(self):
        yield {"image": images(0)}

    def batches(self, split):
        yield {"image": images(len(split))}, np.arange(32) % 5

    def metrics(self, outputs, targets):
        (scores,) = outputs.values()
        return {"top1": float((scores.argmax(1) == targets).mean())}


class NoTask:
    pass


class Incomplete(mixq.Task):
    primary = "top1"
"""

# Name of the class, what it has differently from Tiny, what the message must say.
TASKS: dict[str, tuple[str, list[str]]] = {
    "InTrainingMode": ("def model(self): return Network()", ["training mode", "return model.eval()"]),
    "NotAModel": ("def model(self): return 3", ["model() must return a torch.nn.Module or the path", "'int'"]),
    "NoFile": ("def model(self): return 'missing.onnx'", ["there is no model file missing.onnx"]),
    "Truncated": ("def model(self): return HERE / 'half.onnx'", ["half.onnx cannot be read as ONNX", "truncated?"]),
    "OldOpset": ("def model(self): return HERE / 'old.onnx'", ["opset is 11", "takes 13 and newer", "export it again"]),
    "Quantized": ("def model(self): return HERE / 'int8.onnx'", ["QuantizeLinear", "quantized already", "in FP32"]),
    "NaNWeight": ("def model(self): return HERE / 'nan.onnx'", ["weight 'second.weight' holds NaN", "the checkpoint"]),
    "NoBatchAxis": ("def model(self): return HERE / 'scalar.onnx'", ["the model's output 'mean' has no batch axis"]),
    "RaisingModel": (
        "def model(self): raise OSError('no checkpoint')",
        ["RaisingModel.model raised OSError: no checkpoint (task.py line "],
    ),
    "RaisingCorruption": (
        "def corruptions(self): return {'fog': lambda inputs: 1 / 0}",
        ["RaisingCorruption.corruptions: 'fog' raised ZeroDivisionError: division by zero (task.py line "],
    ),
    "NoLayers": ("def model(self): return HERE / 'pool.onnx'", ["no layer to quantize", "Conv, ConvTranspose, Gemm"]),
    "FixedBatch": ("def model(self): return HERE / 'fixed.onnx'", ["cannot run", "batch axis must be dynamic"]),
    "OtherShape": ("def calibration(self): yield {'image': images(0)[:, :2]}", ["cannot", "(1, 2, 8, 8)"]),
    "OtherInput": (
        "def calibration(self): yield {'x': images(0)}\ndef batches(self, split): yield {'x': images(1)}, np.ones(32)",
        ["the model's inputs are ['image'], but calibration yields ['x']"],
    ),
    "NoCalibration": ("def calibration(self): return []", ["NoCalibration.calibration yields nothing", "at least one"]),
    "NoYield": ("def calibration(self): pass", ["NoYield.calibration must yield batches", "use `yield`"]),
    "Tensors": (
        "def calibration(self): yield {'image': torch.zeros(2, 3, 8, 8)}",
        ["a Tensor, not a numpy", "convert"],
    ),
    "NaNInput": ("def calibration(self): yield {'image': images(0) * np.nan}", ["'image' holds NaN", "clean the data"]),
    "Float64": ("def calibration(self): yield {'image': np.zeros((2, 3, 8, 8))}", ["float64", ".astype(np.float32)"]),
    "Unreadable": ("def calibration(self): raise OSError('no disk')", ["calibration raised OSError: no disk (task.py"]),
    "FewTargets": (
        "def batches(self, split): yield {'image': images(1)}, np.arange(30)",
        ["FewTargets.batches('search')", "32 rows came with targets of shape (30,)", "one target a row"],
    ),
    "RaggedTargets": (
        "def batches(self, split): yield {'image': images(1, 2)}, [[1], [2, 3]]",
        ["RaggedTargets.batches('search')", "the targets are no array", "yield one array a batch"],
    ),
    "OtherSplit": (
        "def batches(self, split): yield {'x': images(1, 2)}, [1, 2]",
        ["OtherSplit.batches('search')", "x (float32), before they were image (float32)", "must be those of calib"],
    ),
    "NoHoldout": (
        "def batches(self, split): return super().batches(split) if split == 'search' else []",
        ["NoHoldout.batches('holdout') yields nothing"],
    ),
    "OddRows": ("rows_per_sample = 5", ["gave 32 rows, which rows_per_sample = 5 does not divide", "leave out"]),
    "NaNMetric": ("def metrics(self, o, t): return {'top1': np.nan}", ["NaNMetric.metrics", "is nan", "finite number"]),
    "OtherMetric": ("def metrics(self, o, t): return {'top5': 1}", ["returned top5", "primary metric 'top1'", "set"]),
    "NoNumber": ("def metrics(self, o, t): return {'top1': torch.ones(1)}", ["is a Tensor", "return float(...)"]),
    "RaisingMetric": (
        "def metrics(self, o, t): raise ValueError('one\\ntwo\\nthree\\nfour')",
        ["RaisingMetric.metrics raised ValueError: one (task.py line "],
    ),
    "NoPrimary": ("primary = None", ["NoPrimary.primary must name the metric", 'primary = "top1"']),
    "Raising": ("def __init__(self): raise OSError('no weights')", ["Raising()", "OSError: no weights (task.py line "]),
    "Exiting": ("def __init__(self): sys.exit(0)", ["Exiting()", "raised SystemExit"]),
}

SPECS = {
    "task.py": ["TASK must be file.py:Class or package.module:Class", "'task.py'"],
    "missing.py:Tiny": ["there is no file missing.py", "TASK is file.py:Class"],
    "{files}/task.py:Missing": ["has no class Missing", "its tasks: Tiny, Incomplete, InTrainingMode"],
    "{files}/task.py:NoTask": ["NoTask is not a mixq.Task", "class NoTask(mixq.Task)"],
    "{files}/task.py:Incomplete": ["lacks the methods batches, calibration, metrics, model", "define them"],
    "{files}/syntax.py:Tiny": ["syntax.py raised SyntaxError", "line 2"],
    "{files}/imports.py:Tiny": ["No module named 'no_such_package'", "install it"],
    "no_such_package.module:Tiny": ["No module named 'no_such_package'", "or run mixq in the folder that holds it"],
}

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
    "--sampler best": ["--sampler", "'guided', 'tpe', 'gp', 'nsga2' or 'random' (got 'best')"],
    "--space missing.yaml": ["cannot read the search space missing.yaml: No such file", "see search_spaces/cpu.yaml"],
    "--space {files}/field.yaml": ["field.yaml line 2: precision: unknown field", "known: activations, constraints"],
    "--space {files}/glob.yaml": ["no layer matches 'tail*' of the search space", "layers: first, second, head"],
    "--space {files}/bf16.yaml --runtime onnxruntime": ["no choice is left for first: onnxruntime cannot run bf16"],
    "--storage garbage": ["the study storage garbage cannot be opened", "give a URL of Optuna's, e.g. sqlite:///"],
    "--storage mysql://me:secret@host/x": ["mysql://me:***@host/x cannot be opened", "install"],
    "--storage sqlite:////proc/x.db": ["sqlite:////proc/x.db cannot be opened", "unable to open database file"],
    "--tracking garbage": ["cannot use 'garbage' as MLflow's tracking store", "e.g. sqlite:///runs/mlflow.db"],
    "--out {files}/task.py": ["cannot write", "task.py: File exists", "choose a folder that you may write to"],
    "--out {files}/task.py/below": ["task.py/below: Not a directory", "choose a folder"],
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
        ["cannot run layer 'head' as int8-dynamic", "dynamic INT8 activations"],
    ),
    "unknown field": (
        lambda text: text.replace('"rest"', '"remainder"'),
        ["remainder: unknown field", "known: format"],
    ),
    "unknown step": (edited(with_an_unknown_step), ["recipe step 'magic' is unknown", "known: calibrate"]),
}


COMMANDS = {
    "": ["the following arguments are required: COMMAND", "mixq --help"],
    "quantize": ["invalid choice: 'quantize'", "'analyze', 'search', 'evaluate', 'export'"],
    "search {files}/task.py:Tiny --out out": ["required: --space", "mixq search --help"],
    "verify {files}": ["cannot read", "certificate.json: No such file", "a folder that a search or an export"],
    "verify missing": ["missing/certificate.json"],
    "show {files}/net.onnx": ["the configuration", "net.onnx is no text", "give a best.json"],
    "show {files}/space.yaml": ["space.yaml is not valid JSON (line 1"],
    "show {files}": ["cannot read the configuration", "best.json: No such file"],
    "show {files}/strange": ["strange/summary.json"],
    "show missing": ["cannot read the configuration missing: No such file"],
    "diff {files}/space.yaml {searched}/best.json": ["space.yaml is not valid JSON"],
    "diff {searched}/best.json {searched}/summary.json": ["summary.json: ", "unknown field; known: format"],
    "export {files}/task.py:Tiny {searched}/best.json --out {files}/task.py": ["task.py: File exists", "choose a"],
    "diff {searched}/best.json": ["required: right", "mixq diff --help"],
    "analyze {files}/task.py:Tiny --schemes nonsense": ["scheme 'nonsense' is unknown", "known: fp32, fp16"],
    "analyze {files}/task.py:Tiny --quiet --rows 0": ["rows must be at least 1", "got 0"],
    "analyze {files}/task.py:Tiny --quiet --out {files}/task.py": ["task.py: File exists", "choose a folder"],
    "analyze {files}/task.py:FewTargets --quiet --out out": ["yield one target a row"],
}


# What is not refused as it should be, and where that is to be mended.
def network(net: Net) -> str:
    """Two convolutions and a classifier; the name of the output."""
    x = net.op("Relu", net.conv("image", 4, name="first"))
    x = net.op("Relu", net.conv(x, 8, name="second"))
    return net.gemm(net.pooled(x), 8, 5, name="head")


def small_net(seed: int = 0) -> Net:
    return Net(3, 8, 8, name="image", seed=seed)


def write_models(folder: Path) -> None:
    """A whole model, and several that are wrong in one way each."""
    net = small_net()
    model = net.model(network(net))
    onnx.save(model, folder / "net.onnx")
    (folder / "half.onnx").write_bytes(model.SerializeToString()[:2000])
    onnx.save(helper.make_model(model.graph, opset_imports=[helper.make_opsetid("", 11)]), folder / "old.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "second.weight":
            value = numpy_helper.to_array(tensor) * np.float32(np.nan)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, folder / "nan.onnx")
    net = small_net(seed=1)
    onnx.save(net.model(network(net)), folder / "other.onnx")
    net = small_net()
    onnx.save(net.model(net.pooled("image")), folder / "pool.onnx")
    net = small_net()
    mean = net.op("ReduceMean", network(net), name="mean", keepdims=0)
    onnx.save(net.model(mean, ranks=[0]), folder / "scalar.onnx")
    net = small_net()
    shape = net.constant("shape", np.array([1, 5]))
    onnx.save(net.model(net.op("Reshape", network(net), shape)), folder / "fixed.onnx")
    net = small_net()
    scale, zero = net.constant("scale", np.float32(0.1)), net.constant("zero", np.uint8(0))
    codes = net.op("QuantizeLinear", "image", scale, zero)
    x = net.conv(net.op("DequantizeLinear", codes, scale, zero), 4)
    onnx.save(net.model(net.gemm(net.pooled(x), 4, 5)), folder / "int8.onnx")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds what the user brings."""
    folder = tmp_path_factory.mktemp("files")
    write_models(folder)
    classes = [f"\n\nclass {name}(Tiny):\n{indent(body, '    ')}\n" for name, (body, _) in {**TASKS, **OTHERS}.items()]
    for name, text in {
        "task.py": TASK + "".join(classes),
        "syntax.py": "\ndef f(:\n",
        "imports.py": "import no_such_package\n",
        "space.yaml": "precisions: [fp32, int8]\nconstraints: {max_drop: 1}\n",
        "other.yaml": "precisions: [fp32, int8]\nconstraints: {max_drop: 0.5}\n",
        "field.yaml": "precisions: [fp32]\nprecision: int8\n",
        "glob.yaml": "precisions: [fp32]\ngroups: ['tail*']\n",
        "bf16.yaml": "precisions: [bf16]\n",
        "strange/summary.json": "{}",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(files: Path, task: str = "Tiny", out: str = "out", trials: int = 1) -> list[str]:
    """A search that is fine but for what is added to it."""
    options = f"--space {files}/space.yaml --trials {trials} --study tiny --tracking none --quiet"
    return ["search", f"{files}/task.py:{task}", "--out", out, *options.split()]


@pytest.fixture(scope="module")
def searched(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of two trials."""
    folder = tmp_path_factory.mktemp("searched") / "out"
    assert cli.main(search(files, out=str(folder), trials=2)) == cli.FOUND
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder but the study, whose SQLite file is tidied whenever it is opened."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if not path.name.startswith("study.db")
    }


def refusal(arguments: Sequence[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What is said, where it is said as it must be and nothing is written in the current folder."""
    before = contents(Path.cwd())
    capfd.readouterr()
    try:
        code = cli.main(arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    said, told = capfd.readouterr()
    assert (code, said) == (cli.BAD_INPUT, ""), told
    assert contents(Path.cwd()) == before
    check(told)
    return told


def check(told: str) -> None:
    assert told.startswith("mixq: ")
    assert told.endswith("\n")
    assert len(told.splitlines()) <= 3, told
    assert "Traceback" not in told
    assert "\x1b" not in told


def says(told: str, parts: Sequence[str]) -> bool:
    assert all(part in told for part in parts), told
    return True


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_that_cannot_be_used(name: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert says(refusal(search(files, name), capfd), TASKS[name][1])


@pytest.mark.parametrize("spec", SPECS)
def test_a_task_that_cannot_be_found(spec: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = search(files)
    arguments[1] = spec.format(files=files)
    assert says(refusal(arguments, capfd), SPECS[spec])


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


# Classes that are fine, but not those that a study was made with.
OTHERS: dict[str, tuple[str, list[str]]] = {
    "OtherModel": ("def model(self): return HERE / 'other.onnx'", ["(model: "]),
    "OtherCalibration": ("def calibration(self): yield {'image': images(5)}", ["(model: "]),
    "OtherData": ("def batches(self, split): yield {'image': images(7)}, np.arange(32) % 5", ["(search data: "]),
    "OtherTargets": ("def batches(self, split): yield {'image': images(len(split))}, np.ones(32)", ["(search data: "]),
    "OtherPrimary": (
        "primary = 'top5'\ndef metrics(self, o, t): return {'top5': super().metrics(o, t)['top1']}",
        ["(metric: top1 then, top5 now; model: "],
    ),
}


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
    assert contents(Path("out")).keys() == before.keys()
    assert cli.main(["verify", "out"]) == cli.FOUND
    assert cli.main(search(files, trials=4)) == cli.FOUND
    assert json.loads(Path("out/summary.json").read_text(encoding="utf-8"))["trials"]["complete"] == 4


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


@pytest.mark.slow
def test_the_installed_command_says_the_same(files: Path, here: Path) -> None:
    command = str(Path(sys.executable).with_name("mixq"))
    for arguments in (["show", "missing"], ["search", "missing.py:Tiny", *search(files)[2:]], ["search"]):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (cli.BAD_INPUT, "")
        check(done.stderr)
        assert contents(here) == {}
