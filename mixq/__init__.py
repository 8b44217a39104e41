"""mixq: mixed-precision quantization by search on real kernels. Importing it is fast; work loads what it needs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixq.api import EvaluationReport, SearchResult, analyze, evaluate, export, search, verify, work
    from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, RecipeStep, Stage, Training
    from mixq.devices import measure_devices
    from mixq.errors import InputError, MixqError
    from mixq.task import Task, load_task

__all__ = [
    "Activation",
    "EvaluationReport",
    "InputError",
    "LayerScheme",
    "MixedPrecisionConfig",
    "MixqError",
    "Precision",
    "RecipeStep",
    "SearchResult",
    "Stage",
    "Task",
    "Training",
    "analyze",
    "evaluate",
    "export",
    "load_task",
    "measure_devices",
    "search",
    "verify",
    "work",
]

_HOMES = {
    "mixq.api": ("EvaluationReport", "SearchResult", "analyze", "evaluate", "export", "search", "verify", "work"),
    "mixq.config": (
        "Activation",
        "LayerScheme",
        "MixedPrecisionConfig",
        "Precision",
        "RecipeStep",
        "Stage",
        "Training",
    ),
    "mixq.devices": ("measure_devices",),
    "mixq.errors": ("InputError", "MixqError"),
    "mixq.task": ("Task", "load_task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mixq' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
