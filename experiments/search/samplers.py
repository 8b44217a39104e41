"""The samplers at equal wall time on a real task: what each has reached when, and how often it comes to the best.

    python -m experiments.search.samplers --data FOLDER --seconds 60 --seeds 3

All start from the same analysis, profiles, uniform configurations and prepared recipes, none of which counts; what a
search queues next for its sampler (planned starts, ladders) does. `value` is the best feasible trial's time ÷ FP32's,
at the bad end of its interval; `hypervolume` that of 1 ÷ speed-up and 1 ÷ compression against (1, 1), of the trials
found feasible by a quarter, half and the end of the time.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from experiments.cifar10_resnet.task import ResNet20
from experiments.etinynet.task import EtinyNet
from experiments.tables import machine_line, markdown
from experiments.tiny_darknet.task import TinyDarknet
from mixq.analysis import guide_job
from mixq.evaluator import Evaluator
from mixq.launch import Names, open_job
from mixq.progress import Progress
from mixq.runtimes import get_runtime
from mixq.searcher.objective import cautious_value, objective_value
from mixq.searcher.run import Budget, run
from mixq.searcher.samplers import SAMPLERS, Distinct
from mixq.searcher.space import load_space
from mixq.searcher.stop import Stop
from mixq.searcher.study import load_profiles, store_profiles, store_sensitivity
from mixq.searcher.trial import Trial
from mixq.sensitivity import Sensitivity
from mixq.task import Task

TASKS: Mapping[str, Callable[[], Task]] = {"resnet20": ResNet20, "tiny_darknet": TinyDarknet, "etinynet": EtinyNet}
SPACE = Path("search_spaces/cpu.yaml")
NEAR = 1.02
RANDOM = "random"  # no sampler of the product: what the others have to beat


@dataclass(frozen=True)
class Run:
    """One search: its trials with the seconds since it began."""

    sampler: str
    trials: tuple[Trial, ...]

    def values(self) -> list[tuple[float, float]]:
        """(seconds, best value so far), where it improved."""
        found: list[tuple[float, float]] = []
        for trial in self.trials:
            if trial.feasible and trial.evaluation is not None:
                value = cautious_value(trial.evaluation, "latency")
                if not found or value < found[-1][1]:
                    found.append((trial.elapsed_s, value))
        return found

    def value(self) -> float:
        return self.values()[-1][1] if self.values() else 1.0

    def reached(self, limit: float) -> float:
        """Seconds until the value was at most `limit`; infinite where it never was."""
        return next((seconds for seconds, value in self.values() if value <= limit), np.inf)

    def hypervolume(self, until: float) -> float:
        """What the feasible trials that were done after `until` seconds dominate."""
        points = sorted(
            (objective_value(e, "latency"), objective_value(e, "size"))
            for trial in self.trials
            if trial.feasible and trial.elapsed_s <= until and (e := trial.evaluation)
        )
        volume, lowest = 0.0, 1.0
        for latency, size in points:
            if latency < 1 and size < lowest:
                volume += (1 - latency) * (lowest - size)
                lowest = size
        return volume


class Known:
    """Analysis and profiles of a task, taken by the first study."""

    def __init__(self) -> None:
        self.sensitivity: Sensitivity | None = None
        self.profiles: dict[str, dict[str, float]] | None = None


def searched(evaluator: Evaluator, sampler: str, seed: int, seconds: float, max_drop: float, known: Known) -> Run:
    """One search from a fresh study."""
    space = load_space(SPACE)
    space = space.model_copy(update={"sampler": "tpe" if sampler == RANDOM else sampler})
    space = space.model_copy(update={"constraints": space.constraints.model_copy(update={"max_drop": max_drop})})
    for recipe in space.recipes.values():
        evaluator.quantizer.prepared(recipe)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.db"
        if known.sensitivity is not None and known.profiles is not None:
            study = optuna.create_study(
                study_name="s", storage=storage, directions=["minimize"] * len(space.objectives)
            )
            store_sensitivity(study, known.sensitivity)
            store_profiles(study, known.profiles)
        names = Names("task", "s", storage, "none")
        job = open_job(
            evaluator, space, Path(folder), names, seed, Budget(10**6, time.monotonic()), Progress(quiet=True)
        )
        in_study = (job.study, evaluator, job.choices, space)
        run(*in_study, Budget(10**6, time.monotonic()), Stop(), trials.append, queued_only=True)
        job.history.update()
        guide_job(job, Progress(quiet=True))
        if sampler == RANDOM:
            job.study.sampler = Distinct(optuna.samplers.RandomSampler(seed), job.choices, seed)
        known.sensitivity, known.profiles = job.sensitivity, load_profiles(job.study)
        now = time.monotonic()
        budget = Budget(10**6, now, now + seconds)
        run(*in_study, budget, Stop(), trials.append, beside=job.history)
    return Run(sampler, tuple(trials))


def main(argv: Sequence[str]) -> None:
    """Print a table a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=["resnet20"])
    parser.add_argument("--samplers", nargs="+", choices=[*SAMPLERS, RANDOM], default=[*SAMPLERS, RANDOM])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("--data", help="the folder of the data sets; by default that of MIXQ_DATA")
    arguments = parser.parse_args(argv)
    if arguments.data:
        os.environ["MIXQ_DATA"] = arguments.data
    for name in arguments.models:
        evaluator, known, runs = Evaluator(TASKS[name](), get_runtime("openvino")), Known(), list[Run]()
        for seed in range(arguments.seeds):  # interleaved, so that a slow hour hits all alike
            for sampler in arguments.samplers:
                runs.append(searched(evaluator, sampler, seed, arguments.seconds, arguments.max_drop, known))
                print(f"{name} {sampler} seed {seed}: {runs[-1].value():.3f}", file=sys.stderr)
        print(f"## {name}, {arguments.seconds:g} s, {arguments.seeds} seeds\n\n{table(runs, arguments.seconds)}\n")
    print(machine_line())


def table(runs: Sequence[Run], seconds: float) -> str:
    """A row a sampler, the best first, of searches of `seconds` each."""
    best = min(found.value() for found in runs)
    moments = (seconds / 4, seconds / 2, np.inf)  # the last trial may end a little late
    rows = []
    for sampler in dict.fromkeys(found.sampler for found in runs):
        own = [found for found in runs if found.sampler == sampler]
        values = [found.value() for found in own]
        times = [found.reached(NEAR * best) for found in own]
        reached = [seconds for seconds in times if np.isfinite(seconds)]
        rows.append(
            (
                float(np.mean(values)),
                [
                    sampler,
                    f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]",
                    *(f"{np.mean([found.hypervolume(until) for found in own]):.3f}" for until in moments),
                    f"{len(reached)} of {len(own)}" + (f", {np.median(reached):.0f} s" if reached else ""),
                    f"{np.mean([len(found.trials) for found in own]):.0f}",
                ],
            )
        )
    volumes = [f"hypervolume at {seconds / 4:.3g} s", f"{seconds / 2:.3g} s", f"{seconds:.3g} s"]
    head = ["sampler", "value [least, most]", *volumes, f"within {NEAR - 1:.0%} of the best known", "trials"]
    return markdown(head, [row for _, row in sorted(rows, key=lambda entry: entry[0])])


if __name__ == "__main__":
    main(sys.argv[1:])
