"""Tables against what went in, the front against a brute-force oracle."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixq.report import layer_table, pareto, trials_frame, write_pareto
from tests.report.trials import BEST, FAILED, LAYERS, PRUNED, TRIALS, sensitivity, trial


def test_trials_frame_has_a_row_a_trial() -> None:
    frame = trials_frame(TRIALS).set_index("number")
    assert list(frame.index) == [0, 1, 2, 3, 4, 9, 10]
    assert list(frame["feasible"]) == [True, True, True, True, False, False, False]
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


def test_a_pruned_trial_has_its_speed_and_its_reason() -> None:
    row = trials_frame(TRIALS).set_index("number").loc[10]
    assert (row["state"], row["speedup_median"], row["size_bytes"], row["drop"]) == ("pruned", 2.0, 1500, 0.025)
    assert row["reason"] == PRUNED.reason
    assert math.isnan(float(str(row["kl"])))


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
