"""Tables against what went in, the front against a brute-force oracle, plots by their pixels, the page by its text."""

from __future__ import annotations

import base64
import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from PIL import Image

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.evaluator import Evaluation
from mixq.latency import Interval
from mixq.report import layer_table, pareto, plot_pareto, plot_sensitivity, trials_frame, write_pareto, write_report
from mixq.report.markup import el, join, number, size_text
from mixq.runtimes import Kernel
from mixq.searcher.trial import Trial

LAYERS = ("stem.conv", "block.b", "block.a", "head")  # the graph's order, which is not the alphabet's
SCRIPT = "<script>alert('x')</script>"


def config(schemes: Sequence[str], layers: Sequence[str] = LAYERS, rest: str = "fp32") -> MixedPrecisionConfig:
    return MixedPrecisionConfig.model_validate(
        {
            "model": "0123456789abcdef",
            "schemes": dict(zip(layers, (LayerScheme.parse(scheme) for scheme in schemes), strict=True)),
            "rest": rest,
            "recipe": (RecipeStep(name="equalize"), RecipeStep(name="adaround", params={"steps": 50})),
        }
    )


def trial(
    index: int,
    drop: float,
    speedup: float,
    size: int = 1000,
    schemes: Sequence[str] = ("bf16", "int8", "int8", "fp32"),
    layers: Sequence[str] = LAYERS,
    max_drop: float = 0.005,
    **changes: Any,
) -> Trial:
    made = config(schemes, layers)
    kernels = [Kernel(name, scheme, f"kernel_{scheme}", 10.0) for name, scheme in zip(layers, schemes, strict=True)]
    evaluation = Evaluation(
        config_id=made.id,
        runtime="openvino",
        threads=1,
        metric=0.75 - drop,
        drop=drop,
        metrics={"top1": 0.75 - drop},
        latency_ms=Interval(3.0 / speedup, 2.9 / speedup, 3.1 / speedup),
        reference_ms=3.0,
        speedup=Interval(speedup, speedup - 0.05, speedup + 0.07),
        size_bytes=size,
        compression=4000 / size,
        output_mse=0.002,
        kl=0.0125,
        agreement=0.975,
        ece=0.03,
        kernels=tuple(kernels),
        seconds={"metric": 0.5, "latency": 0.25},
    )
    violations = (("drop", drop - max_drop),)
    return Trial(index, "complete", made, "ladder", 2.0, replace(evaluation, **changes), violations)


FAILED = Trial(9, "failed", config(["int8"] * 4), "guided", 0.5, reason=f"cannot compile: {SCRIPT}")
TRIALS = (
    trial(0, 0.0, 1.0, 4000, ("fp32",) * 4),
    trial(1, 0.002, 2.0, 1500),
    trial(2, 0.004, 2.5, 1200, ("int8", "int8", "int8", "fp32"), silent=("block.b",)),
    trial(3, 0.004, 1.9, 1600),  # beaten by 1 and 2
    trial(4, 0.03, 3.0, 1000, ("int8",) * 4),  # loses too much
    FAILED,
)
BEST = TRIALS[2]
SUMMARY: dict[str, Any] = {
    "task": "tasks/task.py:Net",
    "study": "night",
    "runtime": "openvino",
    "machine": {"cpu": "EPYC 9", "instructions": ["avx2", "avx512_vnni"], "cores": 2},
    "threads": 1,
    "seed": 0,
    "primary": "top1",
    "constraints": {"max_drop": 0.005, "max_latency_ms": None},
    "baseline": {"metric": 0.75, "latency_ms": 3.0, "size_bytes": 4000},
    "best": {"holdout": {"metric": 0.74, "drop": 0.0061, "drop_interval": [-0.0012, 0.0134], "rows": 1300}},
    "trials": {"complete": 5, "pruned": 0, "failed": 1},
    "wall_s": 60.0,
    "time_to_best_s": 12.5,
    "seconds": {"metric": 20.0, "sensitivity": 30.0},
    "robustness": {"fp32": {"noise": 0.625}, "best": {"noise": 0.619}},
    "notes": ["fp16 was left out"],
    "feasible": True,
}


def sensitivity(layers: Sequence[str] = LAYERS, kl: float | None = 0.001) -> pd.DataFrame:
    """As job.py writes it: the most sensitive first."""
    rows = [
        {
            "layer": layer,
            "op": "Conv",
            "scheme": scheme,
            "parameters": 10,
            "macs": 100,
            "sqnr_db": 20.0 + index,
            "output_mse": 1e-4 * (index + 1),
            "kl": None if kl is None else kl * (index + 1) * (10 if scheme == "int8" else 1),
            "drop": 0.001,
            "rank": index,
        }
        for scheme in ("bf16", "int8")
        for index, layer in enumerate(layers)
    ]
    return pd.DataFrame(rows[::-1])


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


# tables


def test_trials_frame_has_a_row_a_trial() -> None:
    frame = trials_frame(TRIALS).set_index("number")
    assert list(frame.index) == [0, 1, 2, 3, 4, 9]
    assert list(frame["feasible"]) == [True, True, True, True, False, False]
    row = frame.loc[2]
    assert (row["state"], row["origin"], row["rest"], row["recipe"]) == (
        "complete",
        "ladder",
        "fp32",
        "equalize adaround",
    )
    assert (row["int8"], row["fp32"], row["bf16"]) == (3, 1, 0)
    assert (row["drop"], row["metric"], row["metrics_top1"]) == (0.004, 0.746, 0.746)
    assert (row["speedup_median"], row["speedup_low"], row["speedup_high"]) == (2.5, 2.45, 2.57)
    assert (row["size_bytes"], row["kl"], row["silent_layers"], row["seconds"]) == (1200, 0.0125, 1, 2.0)
    assert row["config_id"] == BEST.config.id


def test_a_failed_trial_has_a_reason_and_no_numbers() -> None:
    row = trials_frame(TRIALS).set_index("number").loc[9]
    assert (row["state"], row["reason"], row["int8"]) == ("failed", FAILED.reason, 4)
    assert pd.isna(row["drop"])


def test_no_trials_make_an_empty_frame() -> None:
    frame = trials_frame([])
    assert (len(frame), list(frame.columns[:3])) == (0, ["number", "state", "origin"])


def test_layer_table_keeps_the_order_of_the_graph() -> None:
    table = layer_table(BEST, sensitivity()).set_index("layer")
    assert list(table.index) == list(LAYERS)
    assert list(table["asked"]) == ["int8", "int8", "int8", "fp32"]
    assert list(table["silent"]) == [False, True, False, False]
    assert tuple(table.loc["block.a", ["executed", "kernel", "time_us", "sqnr_db"]]) == (
        "int8",
        "kernel_int8",
        10.0,
        22.0,
    )
    assert table.loc["block.a", "kl"] == pytest.approx(0.03)
    assert list(table["kl"].isna()) == [False, False, False, True], "fp32 has no sensitivity"


def test_layer_table_without_sensitivity() -> None:
    assert layer_table(BEST, None)["kl"].isna().all()
    assert list(layer_table(BEST, sensitivity()[:0])["layer"]) == list(LAYERS)


# the front

POINTS = st.lists(
    st.tuples(
        st.sampled_from([-0.01, 0.0, 0.001, 0.004, math.nan]),
        st.sampled_from([1.0, 1.5, 2.0, 4.0]),
        st.sampled_from([1000, 2000, 4000]),
        st.booleans(),
    ),
    max_size=12,
)


@given(POINTS)
def test_pareto_is_what_nothing_dominates(points: list[tuple[float, float, int, bool]]) -> None:
    trials = [
        trial(index, drop, speedup, size, max_drop=0.005 if kept else -1.0)
        for index, (drop, speedup, size, kept) in enumerate(points)
    ]
    eligible = {
        index: (drop, 1 / speedup, size)
        for index, (drop, speedup, size, kept) in enumerate(points)
        if kept and not math.isnan(drop)
    }
    expected = [
        index
        for index, mine in eligible.items()
        if not any(
            other != mine and all(theirs <= ours for theirs, ours in zip(other, mine, strict=True))
            for other in eligible.values()
        )
    ]
    expected.sort(key=lambda index: (eligible[index][0], index))
    assert [found.number for found in pareto(trials)] == expected


def test_pareto_leaves_out_failed_and_infeasible() -> None:
    assert [found.number for found in pareto(TRIALS)] == [0, 1, 2]
    assert pareto([FAILED]) == []


def test_pareto_csv(tmp_path: Path) -> None:
    write_pareto(tmp_path / "pareto.csv", TRIALS)
    with (tmp_path / "pareto.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert rows[2]["config_id"] == BEST.config.id
    assert (rows[2]["int8"], rows[2]["fp32"], rows[2]["drop"]) == ("3", "1", "0.004")
    assert (float(rows[2]["speedup_median"]), rows[2]["size_bytes"]) == (2.5, "1200")


def test_pareto_csv_of_nothing_has_a_header(tmp_path: Path) -> None:
    write_pareto(tmp_path / "pareto.csv", [FAILED])
    assert (tmp_path / "pareto.csv").read_text(encoding="utf-8").startswith("number,origin,config_id")


# plots


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def share_of(image: np.ndarray[Any, np.dtype[np.uint8]], colour: str) -> float:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(image.astype(int) - rgb).max(axis=2) < 6).mean())


def test_pareto_plot_shows_best_and_limit(tmp_path: Path) -> None:
    with_both, with_none = tmp_path / "a.png", tmp_path / "b.png"
    plot_pareto(with_both, TRIALS, BEST, "top1", 0.005)
    plot_pareto(with_none, TRIALS)
    for colour in ("#c8102e", "#b45309"):
        assert share_of(pixels(with_both), colour) > 1e-4 > share_of(pixels(with_none), colour)
    assert 0.5 < share_of(pixels(with_both), "#ffffff") < 0.99


@pytest.mark.parametrize(
    "trials", [(), (FAILED,), TRIALS[:1], TRIALS[4:5]], ids=["none", "failed", "fp32", "infeasible"]
)
@pytest.mark.parametrize("max_drop", [None, 0.0, 0.005])
def test_pareto_plot_of_little(tmp_path: Path, trials: Sequence[Trial], max_drop: float | None) -> None:
    plot_pareto(tmp_path / "few.png", trials, max_drop=max_drop)
    assert share_of(pixels(tmp_path / "few.png"), "#000000") > 1e-4, "FP32 is marked"


def test_one_lost_network_does_not_squeeze_the_front(tmp_path: Path) -> None:
    """Without its bound the x axis would run to 0.75, and both clouds of circles would be one."""
    from mixq.report.plots import pareto_figure

    lost = trial(7, 0.75, 3.5)
    axes = pareto_figure([*TRIALS, lost], BEST, "top1", 0.005).axes[0]
    assert axes.get_xlim()[1] < 0.05
    assert "2 more lose over" in " ".join(text.get_text() for text in axes.texts)


def test_sensitivity_plot_stands_in_the_given_order() -> None:
    from mixq.report.plots import sensitivity_figure

    axes = sensitivity_figure(sensitivity(), LAYERS).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LAYERS)
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first layer is on top"
    assert axes.get_xscale() == "log"
    longest = max(patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle))
    assert longest == pytest.approx(0.04)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_sensitivity_plot_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bars.{suffix}"
    plot_sensitivity(path, sensitivity())
    if suffix == "svg":
        assert path.read_text(encoding="utf-8").count("#1b7f5c") >= len(LAYERS)
    else:
        assert share_of(pixels(path), "#1b7f5c") > 0.01


def test_sensitivity_falls_back_to_mse() -> None:
    from mixq.report.plots import sensitivity_figure

    assert sensitivity_figure(sensitivity(kl=None)).axes[0].get_xlabel().startswith("MSE of the outputs")


def test_layers_may_be_named_as_formulas(tmp_path: Path) -> None:
    plot_sensitivity(tmp_path / "bars.png", sensitivity(["$\\frac{$", "a$b$", "x" * 300]))
    assert share_of(pixels(tmp_path / "bars.png"), "#1b7f5c") > 0.01


def test_no_error_at_all_can_be_drawn(tmp_path: Path) -> None:
    plot_sensitivity(tmp_path / "bars.png", sensitivity().assign(kl=0.0))
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_svg_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot_pareto(tmp_path / name, TRIALS, BEST)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# the page


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
        "5 complete, 0 pruned, 1 failed",
        "found after 12.5 s",
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
