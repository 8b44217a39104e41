"""What a search costs beside inference as networks grow: bottleneck ResNets of 54 to 504 layers, random weights.

    python -m experiments.search.scale

Each network is searched in a process of its own, so that its peak memory is its own. Images are small and channels few:
what is looked at is the search, not the network.
"""

import argparse
import math
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import mixq
from experiments.peers.networks import RandomWeights, resnet
from experiments.tables import machine_line, markdown
from mixq.searcher.space import load_space

DEPTHS = {54: (3, 4, 6, 3), 102: (3, 8, 16, 5), 204: (3, 24, 36, 3), 504: (16, 48, 88, 14)}
SIDE, BASE, DAMPING = 64, 16, 0.1
SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "cpu.yaml"
MAX_DROP = 0.05  # of the share of the outputs' power that is as in FP32
OWN = ("propose", "prepare", "keep the study", "logging", "files", "export")
RUN = ("compile", "latency", "metric")


def searched(layers: int, trials: int) -> dict[str, float]:
    """Seconds by part of one search in this process, a trial where they grow with trials; peak memory in MB."""
    task = RandomWeights(lambda: resnet(DEPTHS[layers], bottleneck=True, base=BASE), SIDE, DAMPING)
    space = load_space(SPACE)
    space = space.model_copy(update={"recipes": {"quick": space.recipes["quick"]}})
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        found = mixq.search(task, space, folder, max_drop=MAX_DROP, trials=trials, quiet=True)
    summary = found.summary
    seconds: dict[str, float] = summary["seconds"]  # type: ignore[assignment]
    count = len(found.trials)
    return {
        "layers": float(len(found.trials[0].config.schemes)),
        "setup": sum(seconds[name] for name in ("setup", "capture", "FP32", "statistics")),
        "analysis": seconds["analysis"],
        **{name: seconds.get(name, 0.0) / count for name in (*OWN, *RUN)},
        "peak": _peak_mb(),
        "before": before,
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: Sequence[dict[str, float]]) -> str:
    """A row a network; last, by which power of the layers each figure grows from the smallest to the largest."""
    named: dict[str, Callable[[dict[str, float]], float]] = {
        "setup s": lambda row: row["setup"],
        "analysis s": lambda row: row["analysis"],
        **{f"{name} ms": partial(_milliseconds, name) for name in OWN},
        "own work ms a trial": lambda row: 1e3 * sum(row[name] for name in OWN),
        "runtime ms a trial": lambda row: 1e3 * sum(row[name] for name in RUN),
        "peak memory MB": lambda row: row["peak"],
        "of it the search's": lambda row: row["peak"] - row["before"],
    }
    lines = [[f"{row['layers']:.0f}", *(f"{figure(row):.3g}" for figure in named.values())] for row in rows]
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        wider = math.log(last["layers"] / first["layers"])
        powers = [math.log(max(f(last), 1e-9) / max(f(first), 1e-9)) / wider for f in named.values()]
        lines.append(["growth: layers to the power", *(f"{power:.2f}" for power in powers)])
    return markdown(["layers", *named], lines)


def _milliseconds(name: str, row: dict[str, float]) -> float:
    return 1e3 * row[name]


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", type=int, choices=list(DEPTHS), default=list(DEPTHS))
    parser.add_argument("--trials", type=int, default=60)
    arguments = parser.parse_args(argv)
    rows = []
    for layers in arguments.layers:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            rows.append(process.submit(searched, layers, arguments.trials).result())
        print(rows[-1], file=sys.stderr)
    print(f"{table(rows)}\n\n{machine_line()}")


if __name__ == "__main__":
    main(sys.argv[1:])
