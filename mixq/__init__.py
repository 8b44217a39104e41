"""mixq: mixed-precision quantization by search on real kernels. Importing it is fast; work loads what it needs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, RecipeStep, Stage, Training
    from mixq.errors import InputError, MixqError
    from mixq.task import Task, load_task

_HOMES = {
    "Activation": "mixq.config",
    "InputError": "mixq.errors",
    "LayerScheme": "mixq.config",
    "MixedPrecisionConfig": "mixq.config",
    "MixqError": "mixq.errors",
    "Precision": "mixq.config",
    "RecipeStep": "mixq.config",
    "Stage": "mixq.config",
    "Task": "mixq.task",
    "Training": "mixq.config",
    "load_task": "mixq.task",
}

__all__ = [
    "Activation",
    "InputError",
    "LayerScheme",
    "MixedPrecisionConfig",
    "MixqError",
    "Precision",
    "RecipeStep",
    "Stage",
    "Task",
    "Training",
    "load_task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixq' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
