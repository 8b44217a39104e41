"""An analysis that would not be done in time is cut short, and the search ends with what it has."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mixq
from mixq.analysis import DOUBT, PACED, CutShortError, Patience
from mixq.front import Front
from mixq.task import Outputs
from tests.end_to_end.blobs import SPACE, TASK


class Signal:
    requested = False


def patience(monkeypatch: pytest.MonkeyPatch, seconds: float, clock: list[float]) -> Patience:
    monkeypatch.setattr("mixq.analysis.time", SimpleNamespace(monotonic=lambda: clock[0]))
    return Patience(Signal(), seconds)


def steps_until_cut(monkeypatch: pytest.MonkeyPatch, deadline: float, whole: float, total: int = 40) -> int | None:
    """Where each layer takes what is left of the network, `whole` seconds all; None where the analysis gets through."""
    clock = [0.0]
    one = patience(monkeypatch, deadline, clock)
    for done in range(total):
        try:
            one.check(done, total)
        except CutShortError:
            return done
        clock[0] += whole * 2 * (total - done) / (total * (total + 1))
    return None


@given(deadline=st.floats(0.1, 1e3), share=st.floats(0.1, 10))
def test_what_cannot_be_done_in_time_is_not_gone_on_with(deadline: float, share: float) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = steps_until_cut(monkeypatch, deadline, share * deadline)
    if share < 1:
        assert found is None
    elif share > 1.2 * DOUBT:
        assert found is not None
        assert found <= PACED


def test_the_time_that_preparing_takes_is_not_counted_in(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1.0]
    one = patience(monkeypatch, 100, clock)
    one.check(0, 1)
    for done in range(40):
        clock[0] = 50 + done
        one.check(done, 40)


def test_without_a_deadline_it_goes_on() -> None:
    one = Patience(Signal(), None)
    for done in range(1000):
        one.check(done, 1000)


def test_a_stop_ends_it() -> None:
    signal = Signal()
    one = Patience(signal, None)
    one.check(0, 10)
    signal.requested = True
    with pytest.raises(CutShortError, match="stopped before the layers were analyzed"):
        one.check(1, 10)


@pytest.mark.slow
def test_a_search_whose_time_is_up_in_its_analysis_ends_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked, outputs, clock = list[str](), Front.outputs, time.monotonic

    def slow(self: Front, config: mixq.MixedPrecisionConfig) -> Outputs:
        looked.append(config.id)
        monkeypatch.setattr("mixq.analysis.time", SimpleNamespace(monotonic=lambda: clock() + 1e4))
        return outputs(self, config)

    monkeypatch.setattr(Front, "outputs", slow)
    space = tmp_path / "space.yaml"
    space.write_text(SPACE, encoding="utf-8")
    found = mixq.search(TASK, space, out=tmp_path / "out", trials=50, timeout=1000)
    assert len(looked) == 1
    assert "the time is up before the layers were analyzed; only uniform configurations were tried" in (
        capsys.readouterr().err
    )
    assert found.best is not None
    assert all("uniform" in trial.origin for trial in found.trials)
    assert mixq.verify(tmp_path / "out").ok
