"""Identity: what the numbers of a study depend on; it is resumed, and joined, only where all of this is the same."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from mixq import machine
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.runtimes import Runtime
from mixq.searcher.space import SearchSpace

CPU = "cpu"


def identity_of(evaluator: Evaluator, space: SearchSpace) -> dict[str, str]:
    """The machine is part of it where what is best is a matter of times."""
    found = {
        "model": evaluator.fingerprint,
        "metric": str(evaluator.primary),
        "search data": evaluator.data.search_fingerprint(),
        "space": hashlib.sha256(space.model_dump_json().encode()).hexdigest()[:16],
        "runtime": _runtime(evaluator.runtime),
        "threads": str(evaluator.threads),
    }
    return {**found, CPU: machine.processor()} if space.depends_on_time else found


def _runtime(runtime: Runtime) -> str:
    """Its name and version; weights are quantized otherwise where its sums saturate."""
    return f"{runtime.name} {runtime.version}{', sums of 16 bits' if runtime.placement.sums_saturate else ''}"


def check_cpu(study: str, wanted: str | None) -> None:
    """Raises InputError, with the names of both, where this host's CPU is not the one that a study is timed on."""
    if wanted not in {None, machine.processor()}:
        raise InputError(
            f"the study {study!r} compares latencies of {wanted}; those of this host, {machine.processor()}, have no "
            "place among them: join from a host with that CPU, or search for this one under another --study"
        )


def prepared_for(evaluator: Evaluator) -> str:
    """What the results of recipe steps depend on, besides the steps."""
    runtime = _runtime(evaluator.runtime)
    return " ".join((version("mixq"), version("torch"), evaluator.fingerprint, runtime, machine.processor()))
