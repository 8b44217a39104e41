"""Several processes, started by torchrun, for one command: the first runs it, the others train along with it."""

from __future__ import annotations

from collections.abc import Callable

from mixq import machine
from mixq.evaluator import Evaluator
from mixq.qat.group import follow, joined, started_by_torchrun
from mixq.runtimes import get_runtime
from mixq.task import load_task

__all__ = ["run_together", "started_by_torchrun"]


def run_together(run: Callable[[], int], task: str, runtime: str) -> int:
    """What `run` returns, in the first process; the others follow it, and return 0."""
    with joined() as group:
        if group.rank == 0:
            return run()
        evaluator = Evaluator(load_task(task), get_runtime(runtime))
        follow(evaluator.lessons, group, max(1, machine.cores() // group.size))
        return 0
