"""What is read is never run: no pickles, no code in data, no shell, no path out of a folder, no open port."""

from __future__ import annotations

import ast
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from mixq.array_store import ArrayStore
from mixq.errors import InputError
from mixq.graph import large
from mixq.graph.files import read_onnx
from mixq.probe import Probe
from mixq.urls import redacted
from tests.bad_input.data_files import ENTRIES, write_external
from tests.bad_input.user_files import network, small_net

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "mixq").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

RUNS_WHAT_IT_READS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
}
FORBIDDEN = {"eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "yaml.load", "yaml.load_all"} | {
    f"yaml.{loader}" for loader in ("unsafe_load", "full_load", "Loader", "FullLoader", "UnsafeLoader")
}
# What a call must say, though some of these are defaults: defaults change.
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
EVERYWHERE = ("0.0.0.0",)  # noqa: S104


def violations(source: str) -> Iterator[str]:
    """What a file does that it must not, each with its line."""
    for node in ast.walk(ast.parse(source)):
        for name in _imported(node):
            if name.split(".")[0] in RUNS_WHAT_IT_READS:
                yield f"line {node.lineno}: imports {name}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant) and node.value in EVERYWHERE:
            yield f"line {node.lineno}: the address {node.value}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN:
            yield f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {what}" for what in _wrong_call(node))


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _wrong_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    said = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
    if name in FORBIDDEN:
        yield f"{name}(…)"
    if said.get("shell") or said.get("allow_pickle") or said.get("trust_remote_code"):
        yield f"{name}(…) with {said}"
    option, value = MUST_SAY.get(name, ("", None))
    if option and said.get(option) is not value:
        yield f"{name}(…) without {option}={value}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_what_it_reads(path: Path) -> None:
    assert list(violations(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('a')",
        "torch.load('a', weights_only=False)",
        "np.load('a')",
        "np.load('a', allow_pickle=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "loader = yaml.FullLoader",
        "eval('1')",
        "exec(text)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "tempfile.mktemp()",
        "serve(host='0.0.0.0')",
    ],
)
def test_each_of_these_would_be_found(source: str) -> None:
    assert list(violations(source))


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def trapped(path: Path) -> bytes:
    """An .npz file with a pickle in it."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, index=np.array([Trap(path)], dtype=object))
    return buffer.getvalue()


def test_a_trap_works_where_pickles_are_read(tmp_path: Path) -> None:
    with np.load(io.BytesIO(trapped(tmp_path / "sprung")), allow_pickle=True) as archive:
        _ = archive["index"]
    assert (tmp_path / "sprung").is_dir()


def test_prepared_arrays_with_a_pickle_are_made_anew(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "prepared", "owner")
    store.save("key", ["scale"], {"scale": np.ones(3)})
    (path,) = (tmp_path / "prepared").glob("*.prepared")
    content = trapped(tmp_path / "sprung")
    path.write_bytes(hashlib.sha256(content).digest() + content)
    assert store.load("key") is None
    assert not (tmp_path / "sprung").exists()
    store.save("key", ["scale"], {"scale": np.zeros(3)})
    found = store.load("key")
    assert found is not None
    assert found[1]["scale"].tolist() == [0, 0, 0]


def test_a_probe_with_a_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without pickles"):
        Probe.from_bytes(trapped(tmp_path / "sprung"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ENTRIES)
def test_weights_come_from_the_models_own_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_external(folder, small_net, network)
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        read_onnx(folder / f"{name}.onnx")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "weights", "best.onnx.data/../x"])
def test_weights_of_an_export_come_from_its_own_data(location: str) -> None:
    net = small_net()
    model = net.model(network(net))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    with pytest.raises(InputError, match=r"beyond best\.onnx\.data"):
        large.unpack(large.join(model.SerializeToString(), bytes(10_000)))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/x",
        "postgresql+psycopg://me:hunter2@host:5432/x?sslmode=require",
        "postgresql://host/x?user=me&password=hunter2",
        "mysql://me:hun@hunter2@host/x",
    ],
)
def test_urls_are_shown_without_their_password(url: str) -> None:
    assert "hunter2" not in redacted(url)
    assert "host" in redacted(url)
