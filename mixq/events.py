"""What a search reports to a program: events with plain values, as JSON, one a line."""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from mixq.searcher.trial import Trial

STDOUT, STDERR = 1, 2
Events = Callable[[str, dict[str, Any]], None]
"""Called with an event's name and its values."""


@contextmanager
def events_on_stdout() -> Iterator[Events]:
    """Events go to stdout; whatever else is printed there meanwhile, by native libraries too, goes to stderr."""
    with _native_output_on_stderr() as descriptor, os.fdopen(descriptor, "w", encoding="utf-8") as own:
        stdout = own if sys.stdout is sys.__stdout__ else sys.stdout  # what replaced it is not for native libraries
        with redirect_stdout(sys.stderr):
            yield lambda name, values: write_event(stdout, name, values)


@contextmanager
def _native_output_on_stderr() -> Iterator[int]:
    """What native libraries print (HiGHS, now and then) goes to stderr. Gives a descriptor of stdout, to close."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    stdout = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        yield os.dup(stdout)
    finally:
        flush(None)
        os.dup2(stdout, STDOUT)
        os.close(stdout)


def write_event(file: TextIO, name: str, values: dict[str, Any]) -> None:
    """One line, at once: a reader need not wait."""
    line = json.dumps({"event": name, **_finite(values)}, ensure_ascii=False, allow_nan=False)
    print(line, file=file, flush=True)


def trial_values(trial: Trial) -> dict[str, Any]:
    """The numbers of a finished trial; what was not measured is None."""
    found = trial.evaluation
    return {
        "number": trial.number,
        "state": trial.state,
        "feasible": trial.feasible,
        "origin": trial.origin,
        "config_id": trial.config.id,
        "schemes": trial.config.counts(),
        "metric": found and found.metric,
        "drop": found and found.drop,
        "latency_ms": found and found.latency_ms.median,
        "speedup": found and found.speedup.median,
        "size_bytes": found and found.size_bytes,
        "compression": found and found.compression,
        "seconds": trial.seconds,
        "reason": trial.reason,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
