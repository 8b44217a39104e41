"""Where the time went: what is whose, and that the shares are of the whole."""

from __future__ import annotations

import re

import pytest

from mixq.report.wall_time import KINDS, shares, wall_time

PARTS = {"setup": 10.0, "latency": 20.0, "train": 10.0, "compile": 30.0, "propose": 5.0}


def test_shares_are_by_kind_and_sum_to_one() -> None:
    assert shares(PARTS) == pytest.approx({"inference": 30 / 75, "compile": 30 / 75, "own": 15 / 75})
    assert shares({}) == {}


def test_time_that_nothing_names_is_our_own() -> None:
    text = wall_time(PARTS, 100.0)
    assert "everything else" in text
    for kind, share in (("inference", "30%"), ("compile", "30%"), ("own", "40%")):
        assert f"{KINDS[kind]} {share}" in text
    assert re.findall(r"width:([0-9.]+)%", text) == ["30.00", "30.00", "40.00"]
