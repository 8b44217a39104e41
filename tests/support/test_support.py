"""Models of every shape: each row of the README's support table is captured, lowered, run, audited and compared."""

from __future__ import annotations

import pytest

from mixq.config import LayerScheme, Precision
from mixq.runtimes import NAMES, get_runtime
from tests.support.cases import CASES
from tests.support.table import END, FP32, LOW, README, START, measured, rewritten

# Of the outputs' root of mean squares. Weights and activations of two or three layers are rounded: to 8 bits of their
# range, to 8 or 11 binary digits.
MOST = {Precision.FP32: 1e-6, Precision.FP16: 1e-3, Precision.BF16: 1e-2, Precision.INT8: 6e-2}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [FP32, *LOW], ids=str)
@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_it_runs_as_asked_or_is_refused(number: int, runtime: str, scheme: LayerScheme) -> None:
    found = measured(number, runtime, scheme)
    assert found.executed == found.expected
    assert len(found.executed) == len(CASES[number].graph.layers) or found.refused
    if scheme == FP32:
        assert not found.refused
    if found.error is not None:
        assert found.error < MOST[scheme.precision]
        assert scheme == FP32 or found.error > MOST[Precision.FP32]


def test_the_table_in_the_readme_is_what_is_found() -> None:
    fp16 = measured(0, "openvino", LayerScheme(precision=Precision.FP16))
    if get_runtime("openvino").float_refusal(Precision.BF16) or set(fp16.executed.values()) != {"fp32"}:
        pytest.skip("the README's table is of a CPU with BF16 instructions and without FP16 ones")
    text = README.read_text(encoding="utf-8")
    assert rewritten(text) == text, "write the README's support table anew: python -m tests.support.table"


def test_a_table_that_was_edited_is_written_anew() -> None:
    text = README.read_text(encoding="utf-8")
    start, end = text.index(START) + len(START), text.index(END)
    assert rewritten(text) == rewritten(f"{text[:start]}| Conv2d | int4 |\n{text[end:]}")
    with pytest.raises(ValueError, match="no <!-- support"):
        rewritten(text.replace(END, ""))
