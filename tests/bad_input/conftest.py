"""What the user brings, in a folder; an empty current folder; the folder of a search that went well."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import indent

import pytest

from mixq import cli
from tests.bad_input.refusal import search
from tests.bad_input.user_files import OTHERS, TASK, TASKS, write_models


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def searched(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of two trials."""
    folder = tmp_path_factory.mktemp("searched") / "out"
    assert cli.main(search(files, out=str(folder), trials=2)) == cli.FOUND
    return folder
