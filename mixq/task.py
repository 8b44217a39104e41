"""Task: what a user brings (network, calibration inputs, data, metric), and how it is found and loaded."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import numpy.typing as npt

from mixq.errors import InputError, raised

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
Outputs = Mapping[str, Array]


class Task(ABC):
    """Subclass this. Inputs are dicts name → array with the batch on the first axis, of any number and rank."""

    primary: ClassVar[str]
    """The metric to protect, one of the names that `metrics` returns."""

    higher_is_better: ClassVar[bool] = True
    """Of the primary metric; False for a loss, an error rate, a perplexity."""

    rows_per_sample: ClassVar[int] = 1
    """Consecutive rows that belong together (2 for sentence pairs): resampling never separates them."""

    dynamic_axes: Mapping[str, Sequence[int]] = MappingProxyType({})
    """Input → its axes, beside the batch, whose size varies from batch to batch, e.g. {"image": (2, 3)}."""

    @abstractmethod
    def model(self) -> Any:
        """The trained network: a torch.nn.Module in eval mode, or the path of an .onnx file."""

    @abstractmethod
    def calibration(self) -> Iterable[Inputs]:
        """Inputs that look like those in use; a few hundred rows. Activation ranges come from these."""

    @abstractmethod
    def batches(self, split: str) -> Iterable[tuple[Inputs, Array]]:
        """(inputs, targets) of `split`: "search" (picks the configuration) or "holdout" (reports on it)."""

    @abstractmethod
    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        """Metrics by name from all rows in order: outputs by name, targets as `batches` gave them."""

    def training(self) -> Iterable[Inputs | tuple[Inputs, Array]]:
        """Inputs for quantization-aware training; labels are not needed. By default the calibration inputs.

        Where `loss` wants targets, pairs (inputs, targets).
        """
        return self.calibration()

    def loss(self, outputs: Mapping[str, Any], teacher: Mapping[str, Any], targets: Any) -> Any:
        """A loss of your own for quantization-aware training: a scalar torch tensor, the mean over the batch's rows.

        outputs: torch tensors by name; teacher: those of the FP32 model (floats only); targets: as `training` yields
        them, else None. By default the squared distance of the two is trained on, which needs no targets.
        """
        raise NotImplementedError

    def corruptions(self) -> Mapping[str, Callable[[Inputs], Inputs]]:
        """Corruptions by name for the robustness measure; by default noise, blur and contrast on images."""
        return {}


def load_task(spec: str) -> Task:
    """The Task that "path/to/file.py:Class" or "package.module:Class" names, instantiated without arguments.

    Raises InputError where the module, the class or one of its methods is missing.
    """
    location, separator, class_name = spec.rpartition(":")
    if not separator or not location or not class_name:
        raise InputError(f"TASK must be file.py:Class or package.module:Class, got {spec!r}")
    module = _load_file(Path(location)) if location.endswith(".py") else _load_module(location)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        known = [name for name, value in vars(module).items() if _is_task(value)]
        raise InputError(f"{location} has no class {class_name}; its tasks: {', '.join(known) or 'none'}")
    return instantiate(found)


def instantiate(cls: type) -> Task:
    """`cls()`, checked to be a complete Task."""
    if not issubclass(cls, Task):
        raise InputError(f"{cls.__name__} is not a mixq.Task; write `class {cls.__name__}(mixq.Task):`")
    if cls.__abstractmethods__:
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise InputError(f"{cls.__name__} lacks the methods {missing}; define them as in mixq.Task")
    check_declared(cls)
    try:
        return cls()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(f"{cls.__name__}(), called without arguments,", error) from error


def check_declared(task: Task | type[Task]) -> None:
    """Raises InputError where what a Task declares beside its methods cannot be meant."""
    name = task.__name__ if isinstance(task, type) else type(task).__name__
    if not isinstance(getattr(task, "primary", None), str):
        raise InputError(f'{name}.primary must name the metric to protect, e.g. primary = "top1"')
    if not isinstance(task.higher_is_better, bool):
        raise InputError(
            f"{name}.higher_is_better must be True or False, got {task.higher_is_better!r}; False where a lower "
            f"{task.primary} is better"
        )
    rows = task.rows_per_sample
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise InputError(f"{name}.rows_per_sample must be a whole number of at least 1, got {rows!r}")


def _is_task(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and value is not Task


def _load_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):  # of a name that no file can have, Path.is_file raises
        raise InputError(f"there is no file {path}; TASK is file.py:Class")
    _make_importable(path.resolve().parent)  # so that the task's file can import its neighbors
    spec = importlib.util.spec_from_file_location(f"mixq_task_{abs(hash(str(path.resolve())))}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    loader = spec.loader

    def load() -> ModuleType:
        loader.exec_module(module)
        return module

    return _imported(str(path), load)


def _load_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())  # where `python -m` would look too
    return _imported(name, lambda: importlib.import_module(name))


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _imported(name: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(f"importing {name}: {error}; install it, or run mixq in the folder that holds it") from error
    except (Exception, SystemExit) as error:
        raise raised(f"importing {name}", error) from error
