"""Calibration: what activations look like, gathered in a stream, and the ranges that observers choose from it."""

from __future__ import annotations

from mixq.calibration.collect import Statistics, collect
from mixq.calibration.histogram import TensorStatistics
from mixq.calibration.observers import MSE, Entropy, MinMax, Observer, Percentile
from mixq.errors import InputError

OBSERVERS: dict[str, type[Observer]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "mse": MSE,
    "entropy": Entropy,
}

__all__ = ["OBSERVERS", "Observer", "Statistics", "TensorStatistics", "collect", "get_observer"]


def get_observer(name: str) -> Observer:
    """The observer `name` with its defaults. Raises InputError with the known names."""
    if name not in OBSERVERS:
        raise InputError(f"observer {name!r} is unknown; known: {', '.join(OBSERVERS)}")
    return OBSERVERS[name]()
