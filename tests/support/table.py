"""The support table of the README: what each shape of model runs as, on each runtime, as the kernel audit finds it.

`python -m tests.support.table` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.graph.layers import float_only
from mixq.runtimes import NAMES, get_runtime
from tests.helpers import lowered
from tests.support.cases import CASES, Case

README = Path(__file__).parents[2] / "README.md"
LOW = tuple(map(LayerScheme.parse, ("int8", "int8-dynamic", "int8-weight_only", "bf16", "fp16")))
FP32 = LayerScheme(precision=Precision.FP32)
TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
START, END = "<!-- support: python -m tests.support.table -->\n", "<!-- /support -->\n"


@dataclass(frozen=True)
class Cell:
    """One case in one scheme on one runtime.

    executed: by layer that was asked for the scheme; expected: in what; refused: why others were not; floats: ops that
    no one asks; error: of the outputs, root of mean squares against the exact ones', relative (None where all was
    refused).
    """

    executed: dict[str, str]
    expected: dict[str, str]
    refused: tuple[str, ...]
    floats: tuple[str, ...]
    error: float | None


@cache
def measured(number: int, runtime_name: str, scheme: LayerScheme) -> Cell:
    """The case CASES[number]: captured, calibrated, lowered, run on inputs that calibration has not seen, audited."""
    case, runtime = CASES[number], get_runtime(runtime_name)
    reasons = {layer.name: runtime.refusal(scheme, layer) for layer in case.graph.layers}
    refused = tuple(dict.fromkeys(reason for reason in reasons.values() if reason is not None))
    floats = tuple(float_only(case.graph.model))
    if all(reasons.values()):
        return Cell({}, {}, refused, floats, None)
    asked = {name: scheme if reason is None else FP32 for name, reason in reasons.items()}
    config = MixedPrecisionConfig(model=case.graph.fingerprint, schemes=asked)
    model = lowered(case.graph, config, runtime, case.inputs)
    outputs = model.executable.run(case.others)
    error = max(_error(want, have) for want, have in zip(case.exact, outputs.values(), strict=True))
    kernels = model.executable.audit(case.graph.layers, case.others, timed=False).kernels
    executed = {k.layer: k.executed for k in kernels if reasons[k.layer] is None}
    expected = {name: runtime.expected(scheme, case.graph.by_name[name], config) for name in executed}
    return Cell(executed, expected, refused, floats, error)


def _error(want: np.ndarray, have: np.ndarray) -> float:
    assert want.shape == have.shape
    return float(np.sqrt(np.mean((want - have) ** 2) / np.mean(want**2)))


def table(cases: Sequence[Case] = CASES) -> str:
    """Markdown: a row for each name of a case, a column for each runtime and scheme, the reasons below."""
    columns = [(runtime, scheme) for runtime in NAMES for scheme in LOW]
    heads = [f"{TITLES[runtime]} {scheme}" for runtime, scheme in columns]
    reasons: dict[str, int] = {}
    lines = [_line(["model", *heads]), _line(["---"] * (1 + len(heads)))]
    for name in dict.fromkeys(case.name for case in cases):
        numbers = [number for number, case in enumerate(CASES) if case.name == name]
        lines.append(_line([name, *(_text([measured(n, *column) for n in numbers], reasons) for column in columns)]))
    notes = [f"({number}) {reason}." for reason, number in reasons.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cells: Sequence[Cell], reasons: dict[str, int]) -> str:
    """What the layers of all these cases ran as; "—" and a reason's number where they were refused."""
    ran = dict.fromkeys(executed for cell in cells for executed in cell.executed.values())
    floats = dict.fromkeys(f"{op} fp32" for cell in cells if cell.executed for op in cell.floats)
    refused = dict.fromkeys(reason for cell in cells for reason in cell.refused)
    marks = [f"— ({reasons.setdefault(reason, len(reasons) + 1)})" for reason in refused]
    return ", ".join([*ran, *floats, *marks])


def rewritten(text: str) -> str:
    """`text` with the table between its two marks as it is found now."""
    found, count = re.subn(f"(?<={re.escape(START)}).*?(?={re.escape(END)})", lambda _: table(), text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the text has no {START.strip()} … {END.strip()}, or several")
    return found


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
