"""How the numbers of a comparison are written down."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mixq import machine
from mixq.latency import Interval

PACKAGES = ("openvino", "onnxruntime", "optuna", "nncf", "torch")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def interval(ratio: Interval) -> str:
    """A ratio with its interval: "1.05 [1.03, 1.07]"."""
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def points(drop: float, bounds: tuple[float, float]) -> str:
    """A drop of a fraction in points, with its interval."""
    low, high = bounds
    return f"{100 * drop:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def machine_line() -> str:
    """The machine and the versions that the numbers belong to."""
    found = machine.describe()
    instructions = ", ".join(map(str, _listed(found["instructions"])))
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return f"Machine: {found['cores']}-core {found['cpu']} ({instructions}), {found['system']}.\n" + (
        f"Python {found['python']}, {versions}."
    )


def publish(sections: Sequence[str], out: Path | None) -> None:
    """Print the page that the sections make, and write it to `out` as well."""
    page = "\n\n".join(sections) + "\n"
    print(page)
    if out:
        out.write_text(page, encoding="utf-8")


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
