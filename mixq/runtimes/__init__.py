"""The runtimes by name. One row, one file: add a runtime by adding both."""

from __future__ import annotations

import importlib

from mixq.errors import InputError
from mixq.runtimes.base import Audit, Executable, Kernel, Runtime

_RUNTIMES = {
    "openvino": "mixq.runtimes.openvino:OpenVino",
    "onnxruntime": "mixq.runtimes.onnxruntime:OnnxRuntime",
}

NAMES = tuple(_RUNTIMES)

__all__ = ["NAMES", "Audit", "Executable", "Kernel", "Runtime", "get_runtime"]


def get_runtime(name: str) -> Runtime:
    """The runtime `name`. Raises InputError with the known names, or with what to install."""
    if name not in _RUNTIMES:
        raise InputError(f"runtime {name!r} is unknown; known: {', '.join(_RUNTIMES)}")
    module, _, cls = _RUNTIMES[name].partition(":")
    try:
        runtime = getattr(importlib.import_module(module), cls)()
    except ImportError as error:
        raise InputError(f"runtime {name!r} needs a package that is missing: {error}; pip install {name}") from error
    if not isinstance(runtime, Runtime):
        raise TypeError(f"{_RUNTIMES[name]} is not a Runtime")
    return runtime
