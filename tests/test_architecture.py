"""The architecture, held by tests: imports form a DAG, third parties have one owner, importing mixq is fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mixq"

# Left never imports right. What stands on one line is one level, and its members may import each other downwards.
LEVELS = (
    ("errors", "documents", "validation", "yaml_file", "urls"),
    ("config", "machine", "stopwatch", "progress", "atomic", "scratch", "summary", "array_store", "turns", "process"),
    ("affine",),
    ("task", "dynamic_axes", "dataset", "corruptions", "drop", "measures", "deltas"),
    ("graph",),
    ("calibration",),
    ("twin",),
    ("ptq",),
    ("qat",),
    ("runtimes",),
    ("latency",),
    ("evaluation", "batches", "race"),
    ("evaluator",),
    ("front", "shadow", "sensitivity", "gains", "devices"),
    ("searcher",),
    ("certificate", "probe", "exporter", "verifier", "trial_record", "tracking", "report"),
    ("identity", "contenders", "job", "ending", "events"),
    ("launch", "crew", "job_file"),
    ("analysis",),
    ("lead", "worker"),
    ("api",),
    ("show", "together"),
    ("cli",),
    ("__main__",),
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}

OWNERS = {
    "optuna": ("searcher",),
    "mlflow": ("tracking",),
    "openvino": ("runtimes/openvino.py",),
    "onnxruntime": ("runtimes/onnxruntime.py",),
    "yaml": ("yaml_file.py",),
    "matplotlib": ("report",),
    "torch": ("graph/capture.py", "twin", "qat"),
    "tqdm": ("progress.py",),
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, those for type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_left_never_imports_right(path: Path) -> None:
    own = top_level(path)
    if own == "__init__":
        return
    assert own in LEVEL_OF, f"{own} has no place in LEVELS"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mixq" and len(parts) > 1 and parts[1] in LEVEL_OF:
            assert LEVEL_OF[parts[1]] <= LEVEL_OF[own], f"{path} imports {name}, which stands to its right"


def test_there_is_no_cycle_between_files() -> None:
    modules = {
        ".".join(("mixq", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): p for p in FILES
    }
    edges = {
        name: {target for found in imports(path) if (target := owner_of(found, modules)) and target != name}
        for name, path in modules.items()
    }
    order: list[str] = []
    while edges:
        free = [name for name, targets in edges.items() if not targets]
        assert free, f"these import each other: {sorted(edges)}"
        order += free
        edges = {name: targets - set(free) for name, targets in edges.items() if name not in free}
    assert len(order) == len(modules)


def owner_of(name: str, modules: dict[str, Path]) -> str | None:
    """The module that an imported dotted name stands in."""
    if name in modules:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in modules and parent != "mixq" else None


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_third_parties_have_one_owner(package: str) -> None:
    users = [str(path.relative_to(ROOT)) for path in FILES if any(n.split(".")[0] == package for n in imports(path))]
    assert users
    for user in users:
        assert user.startswith(OWNERS[package]), f"{user} imports {package}, which belongs to {OWNERS[package]}"


def test_importing_mixq_is_fast_and_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import mixq; mixq.Task; mixq.MixedPrecisionConfig; "
        "print(time.perf_counter() - start); "
        "print([m for m in ('torch', 'mlflow', 'optuna', 'openvino', 'onnxruntime', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert found[1] == "[]"


def test_a_command_imports_what_is_heavy_when_it_is_wanted() -> None:
    """Every worker and every command waits for its imports first."""
    heavy = ("torch", "mlflow", "scipy", "matplotlib", "openvino", "onnxruntime")
    code = f"import sys, mixq.cli, mixq.api; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
