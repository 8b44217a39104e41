"""The page by its text: every number is there, all text is escaped, nothing is fetched."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mixq.config import Precision
from mixq.report import write_report
from mixq.report.markup import el, join, number, size_text
from mixq.runtimes import Kernel
from tests.report.trials import BEST, FAILED, LAYERS, SCRIPT, SUMMARY, TRIALS, sensitivity, trial


class Page(HTMLParser):
    """Tags that were opened, and the text outside the style sheet."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.parts: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


def page(tmp_path: Path, summary: Mapping[str, Any] = SUMMARY, **changes: Any) -> Page:
    path = tmp_path / "report.html"
    given = {"trials": TRIALS, "best": BEST, "sensitivity": sensitivity(), "kendall": {"kl": 0.47, "sqnr_db": math.nan}}
    write_report(path, summary, **{**given, **changes})
    return Page(path)


def test_page_tells_the_numbers(tmp_path: Path) -> None:
    text = page(tmp_path).text
    for said in (
        "mixq: tasks/task.py:Net",
        "2.50× FP32’s speed",
        "95 % interval 2.45 to 2.57",
        "1.2 ms",
        "drop of top1, search split0.004",
        "0.0061",
        "95 % interval −0.0012 to 0.0134, 1,300 rows",
        "1.2 kB",
        "max drop 0.005",
        "5 complete, 1 pruned, 1 failed",
        "found after 12.5 s",
        "drop 0.0250 on 250 of 1000 rows, so at least 0.0120 on all; allowed is 0.005",
        "fp16 was left out",
        "kernel_int8",
        "adaround {'steps': 50}",
        "0.625",
        "60 s in all",
        "everything else10",
        "EPYC 9",
        "avx2, avx512_vnni",
        "openvino.Core()",
    ):
        assert said in text, said
    assert re.search(r"kl\s*0\.47", text)
    assert re.search(r"sqnr_db\s*–", text)


def test_page_is_loud_about_layers_that_ran_otherwise(tmp_path: Path) -> None:
    loud = "did NOT run in the precision that was asked"
    kernels = tuple(Kernel(name, "fp32" if name == "block.b" else "int8", "k") for name in LAYERS)
    assert BEST.evaluation is not None
    found = page(tmp_path, best=replace(BEST, evaluation=replace(BEST.evaluation, kernels=kernels)))
    assert f"1 layer {loud}block.b: asked int8, ran fp32" in found.text
    assert ("class", "loud") in found.attributes
    assert loud not in page(tmp_path, best=TRIALS[1]).text


def test_page_escapes_all_text(tmp_path: Path) -> None:
    layers = (SCRIPT, "a&b", '"q"', "head")
    best = trial(2, 0.004, 2.5, layers=layers, silent=(SCRIPT,))
    summary = {**SUMMARY, "task": SCRIPT, "primary": SCRIPT, "notes": [SCRIPT], "machine": {SCRIPT: SCRIPT}}
    summary |= {"robustness": {SCRIPT: {SCRIPT: 0.5}}, "seconds": {SCRIPT: 1.0}, "study": SCRIPT, "runtime": SCRIPT}
    found = page(
        tmp_path, summary, trials=[best, FAILED], best=best, sensitivity=sensitivity(layers), kendall={SCRIPT: 0.5}
    )
    assert "script" not in found.tags
    assert "<script" not in found.source.lower()
    assert found.text.count(SCRIPT) >= 12
    assert "a&b" in found.text


def test_page_fetches_nothing(tmp_path: Path) -> None:
    found = page(tmp_path)
    assert found.tags.count("img") == 2
    links = [value or "" for name, value in found.attributes if name in ("src", "href", "action", "srcset")]
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert not re.search(r"url\(|@import|https?:", found.source)
    for link in links:
        drawn = base64.b64decode(link.partition(",")[2])
        assert drawn.rstrip().endswith(b"</svg>")
    assert "default-src 'none'" in found.source


def test_page_where_nothing_was_feasible(tmp_path: Path) -> None:
    summary = {**SUMMARY, "best": None, "feasible": False, "time_to_best_s": None}
    text = page(tmp_path, summary, best=None, trials=[TRIALS[4], FAILED]).text
    assert "No configuration met the constraints: the FP32 model is the answer." in text
    assert "Which layers hurt" in text


def test_page_where_nothing_beats_fp32(tmp_path: Path) -> None:
    assert "Nothing that met the constraints beat FP32" in page(tmp_path, best=TRIALS[0]).text


def test_page_of_the_least_there_can_be(tmp_path: Path) -> None:
    found = page(tmp_path, {}, trials=[], best=None, sensitivity=None, kendall=None)
    assert "get_runtime" in found.text, "an unknown runtime is opened through mixq"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (-0.0012, "−0.0012"), (1234567.0, "1,234,567"), (1e-7, "1e-07"), (1300, "1,300")],
)
def test_numbers_as_text(value: object, text: str) -> None:
    assert number(value) == text


def test_markup_escapes_what_is_text() -> None:
    assert el("p", "<", el("b", "&"), class_='"') == '<p class="&quot;">&lt;<b>&amp;</b></p>'
    assert join("<", 1) == "&lt;1"
    assert (size_text(2_400_000), size_text(1500)) == ("2.4 MB", "1.5 kB")


def test_precision_names_have_colours() -> None:
    from mixq.report.style import CSS

    assert [p for p in Precision if p is not Precision.FP32 and f".chip.{p}" not in CSS] == []


def test_what_training_gained_stands_layer_by_layer(tmp_path: Path) -> None:
    gains = [
        {"layer": "stem <b>", "error": 0.01, "untrained": 0.0452, "drop": 0.002, "untrained_drop": 0.0317},
        {"layer": "head", "error": 0.01, "untrained": 0.009, "drop": 0.002, "untrained_drop": 0.001},
    ]
    found = page(tmp_path, {**SUMMARY, "best": {**SUMMARY["best"], "training_gains": gains}})
    assert "What training gained" in found.text
    for said in ("stem <b>", "0.0452", "0.0352", "0.0317", "-0.001"):
        assert said in found.text.replace("−", "-")
    assert "What training gained" not in page(tmp_path).text
