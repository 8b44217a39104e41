"""mixq's search beside NNCF's accuracy control: same FP32 graph, same data, same allowed drop, latency on one thread.

`python experiments/peers/search.py --out experiments/peers/search.md`; it needs the extra `peers`. Both begin with the
same ONNX file and the same batches in memory. mixq's time has everything in it: checks, analysis, exports, report.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: this is run by its path

import numpy as np

import mixq
from experiments.drops import drop_and_interval
from experiments.peers import nncf_peer
from experiments.peers.ptq import TRAINED, progress
from experiments.tables import interval, machine_line, markdown, points, publish
from experiments.timing import geometric_mean, measure_copies
from mixq import machine
from mixq.batches import run_batches
from mixq.config import Precision
from mixq.dataset import Split, TaskData, row_count
from mixq.errors import InputError
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.latency import Interval
from mixq.runtimes import Executable, get_runtime
from mixq.searcher.objective import best_of
from mixq.searcher.trial import Trial
from mixq.task import Array, Inputs, Outputs, Task

SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "cpu.yaml"
LEAST_S = 30.0  # for mixq, where NNCF takes less


@dataclass(frozen=True)
class Side:
    """A final model: seconds until it was there, its drop on both splits with 95 % intervals, layers in INT8."""

    wall_s: float
    search: tuple[float, tuple[float, float]]
    holdout: tuple[float, tuple[float, float]]
    int8: str


@dataclass(frozen=True)
class Match:
    """speedup: NNCF's latency ÷ mixq's; first_s: mixq's seconds until it had a model at least as fast as NNCF's."""

    network: str
    nncf: Side
    mixq: Side
    speedup: Interval
    over_fp32: tuple[Interval, Interval]
    first_s: float | None

    @property
    def share(self) -> float | None:
        """Of NNCF's time that mixq needed to beat it."""
        return None if self.first_s is None else self.first_s / self.nncf.wall_s


def play(name: str, nncf: Any, max_drop: float, seconds: float | None) -> Match:
    """NNCF first, then mixq for as long (or `seconds`), then both final models against each other."""
    evaluator = Evaluator(TRAINED[name](), get_runtime("openvino"))
    search, example = evaluator.data.split("search"), evaluator.data.example
    progress(f"{name}: NNCF's accuracy control")
    start = time.perf_counter()
    model = nncf_peer.quantize_within(
        nncf, evaluator.reference.model, evaluator.data.calibration, search, evaluator.primary.of, max_drop
    )
    nncf_s = time.perf_counter() - start
    budget = seconds or max(LEAST_S, nncf_s)
    progress(f"{name}: NNCF took {nncf_s:.0f} s; mixq gets {budget:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        path.write_bytes(evaluator.reference.model)
        found = mixq.search(
            AtHand(TRAINED[name](), path, evaluator.data),
            SPACE,
            Path(folder) / "out",
            max_drop=max_drop,
            trials=100_000,
            timeout=budget,
            tracking="none",
            quiet=True,
        )
        exported = (Path(folder) / "out" / "best.onnx").read_bytes()
    if found.best is None:
        raise InputError(f"{name}: the search found no model within the drop")
    options = evaluator.runtime.options(found.best.config)
    theirs = partial(nncf_peer.opened, model, 1)
    ours = partial(evaluator.runtime.compile, exported, 1, options)
    fp32 = partial(evaluator.runtime.compile, evaluator.reference.model, 1)
    progress(f"{name}: timing")
    drops = [
        [drop_and_interval(evaluator, name, outputs(evaluator.data.split(name))) for name in ("search", "holdout")]
        for outputs in (
            partial(_nncf_outputs, evaluator, model),
            partial(evaluator.outputs, Candidate(found.best.config, exported, options)),
        )
    ]
    layers, int8 = len(evaluator.graph.layers), len(found.best.config.layers_with(Precision.INT8))
    return Match(
        name,
        Side(nncf_s, drops[0][0], drops[0][1], f"{_int8_kernels(evaluator, model)} of {layers}"),
        Side(float(str(found.summary["wall_s"])), drops[1][0], drops[1][1], f"{int8} of {layers}"),
        measure_copies(theirs, ours, example, 5.0).speedup,
        (measure_copies(fp32, theirs, example, 3.0).speedup, measure_copies(fp32, ours, example, 3.0).speedup),
        _first_faster(evaluator, found.trials, theirs),
    )


class AtHand(Task):
    """A classifier's task with what NNCF is handed: its model an ONNX file, its data in memory."""

    primary = "top1"

    def __init__(self, task: Task, path: Path, data: TaskData) -> None:
        """`task`: whose metrics count; path: of the model; data: of the same task."""
        super().__init__()
        self._task, self._path, self._data = task, path, data
        data.split("holdout")

    def model(self) -> Path:
        """Where the ONNX file is."""
        return self._path

    def calibration(self) -> Iterator[Inputs]:
        """As they were read."""
        return iter(self._data.calibration)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        """As they were read."""
        held = self._data.split(split)
        ends = np.cumsum([row_count(batch) for batch in held.batches])
        return zip(held.batches, np.split(held.targets, ends[:-1]), strict=True)

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        """Those of the task."""
        return self._task.metrics(outputs, targets)


def _nncf_outputs(evaluator: Evaluator, model: Any, split: Split) -> Outputs:
    return run_batches(nncf_peer.opened(model, machine.cores()), split.batches, evaluator.data.batch_rows)


def _int8_kernels(evaluator: Evaluator, model: Any) -> int:
    """Layers that an INT8 kernel executes in NNCF's model."""
    audit = nncf_peer.opened(model, 1).audit(evaluator.graph.layers, evaluator.data.example, timed=False)
    return sum(kernel.executed == "int8" for kernel in audit.kernels)


def _first_faster(evaluator: Evaluator, trials: Sequence[Trial], theirs: Callable[[], Executable]) -> float | None:
    """Seconds until the search's best was not surely slower than `theirs`; each best is lowered and timed once more."""
    known: list[Trial] = []
    last: Trial | None = None
    for trial in trials:
        known.append(trial)
        best = best_of(known, "latency")
        if best is None or best is last:
            continue
        last, candidate = best, evaluator.prepare(best.config)
        ours = partial(evaluator.runtime.compile, candidate.model, 1, candidate.options)
        if measure_copies(theirs, ours, evaluator.data.example, 2.0, copies=3).speedup.high >= 1:
            return trial.elapsed_s
    return None


def report(matches: Sequence[Match]) -> Iterator[str]:
    """The sections of the page."""
    rows = [
        [
            match.network,
            interval(match.speedup),
            *map(interval, match.over_fp32),
            f"{match.nncf.int8} / {match.mixq.int8}",
            f"{match.nncf.wall_s:.1f} / {match.mixq.wall_s:.1f}",
            "never" if match.first_s is None else f"{match.first_s:.1f} ({match.share:.2f})",
        ]
        for match in matches
    ]
    rows.append(
        [
            "geometric mean",
            interval(geometric_mean([match.speedup for match in matches])),
            *[""] * 4,
            _mean_share(matches),
        ]
    )
    yield "## Final models: latency and time\n\n" + markdown(
        [
            "network",
            "NNCF ÷ mixq [95 %]",
            "FP32 ÷ NNCF",
            "FP32 ÷ mixq",
            "INT8 layers, NNCF / mixq",
            "wall s, NNCF / mixq",
            "mixq as fast as NNCF's after s (÷ NNCF's wall)",
        ],
        rows,
    )
    drops = [
        [match.network, *(points(*value) for side in (match.nncf, match.mixq) for value in (side.search, side.holdout))]
        for match in matches
    ]
    yield "## Final models: drop in points [95 %]\n\n" + markdown(
        ["network", "NNCF, search", "NNCF, holdout", "mixq, search", "mixq, holdout"], drops
    )


def _mean_share(matches: Sequence[Match]) -> str:
    shares = [match.share for match in matches]
    if any(share is None for share in shares):
        return "–"
    known = [Interval(share, share, share) for share in shares if share is not None]
    return f"({geometric_mean(known).median:.2f})"


def main(argv: Sequence[str]) -> int:
    """Print the page, and write it to --out. Returns the exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(TRAINED), default=list(TRAINED))
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("--seconds", type=float, help=f"for mixq; by default NNCF's time, at least {LEAST_S:g}")
    parser.add_argument("--data", help="the folder of the data sets; by default that of MIXQ_DATA")
    parser.add_argument("--out", type=Path, help="a file that the tables are written to as well")
    arguments = parser.parse_args(argv)
    if arguments.data:
        os.environ["MIXQ_DATA"] = arguments.data
    matches = []
    try:
        nncf = nncf_peer.load_nncf()
        for name in arguments.models:
            matches.append(play(name, nncf, arguments.max_drop, arguments.seconds))
            progress("\n".join(report(matches)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "experiments/peers/search.py", *argv])
    allowed = f"Allowed drop: {arguments.max_drop:g} on the search split."
    publish(["# peers: the search", f"    {command}", machine_line(), allowed, *report(matches)], arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
