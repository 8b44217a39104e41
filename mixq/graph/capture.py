"""torch.nn.Module or .onnx file → Graph, and the proof that the graph computes what the original computes."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from mixq.dynamic_axes import DynamicAxes, checked_axes, doubled, halved
from mixq.errors import InputError, first_line
from mixq.graph.files import read_onnx
from mixq.graph.inference import infer_types
from mixq.graph.layers import find_layers
from mixq.graph.model import CompileRun, Graph, Run, serialize
from mixq.graph.normalize import OPSET, check, normalize, strip
from mixq.task import Array, Inputs, Outputs

TOLERANCE = 1e-3  # of the largest output: folding and another order of summation stay far below
_BATCH_ONLY: Mapping[str, Sequence[int]] = MappingProxyType({})


def capture(
    source: Any, example: Inputs, compile_run: CompileRun, dynamic_axes: Mapping[str, Sequence[int]] = _BATCH_ONLY
) -> Graph:
    """The graph of `source` (an eval-mode torch.nn.Module or the path of an .onnx file).

    `example`: a few rows of every input, batch first. `compile_run` runs ONNX bytes on the runtime in use.
    `dynamic_axes`: input → axes beside the batch that vary. Raises InputError where the source cannot be captured, or
    where the graph's outputs differ from the original's by more than TOLERANCE, with the difference.
    """
    axes = checked_axes("dynamic_axes", dynamic_axes, example)
    with _explained(source):
        if isinstance(source, str | Path):
            model, original = _from_onnx(Path(source), example, compile_run, axes)
        else:
            model, original = _from_torch(source, example, axes)
        model = normalize(model)
        _free_axes(model, axes)
        infer_types(model)
        layers = find_layers(model, {name: value[:1] for name, value in example.items()})
        strip(model)
        check(model)
    captured = compile_run(serialize(model))
    _check_equal(original, captured, example)
    if any(axes.values()):
        _check_equal(original, captured, _other_size(original, example, axes))
    return Graph(model, layers)


@contextmanager
def _explained(source: Any) -> Iterator[None]:
    """What a graph out of a file makes the passes over it raise is that file's fault."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not isinstance(source, str | Path):
            raise
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise InputError(f"the graph in {source} cannot be understood ({reason}); export it again") from error


def _from_onnx(path: Path, example: Inputs, compile_run: CompileRun, axes: DynamicAxes) -> tuple[ir.Model, Run]:
    model = read_onnx(path)
    _check_names(model, example)
    _free_axes(model, axes)
    infer_types(model)
    return model, compile_run(serialize(model))


def _from_torch(module: Any, example: Inputs, axes: DynamicAxes) -> tuple[ir.Model, Run]:
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(f"model() must return a torch.nn.Module or the path of an .onnx file, got {type(module)}")
    if module.training:
        raise InputError("the model is in training mode; return model.eval()")
    _check_parameters(module, example)
    model = _exported(module, example, axes)
    _check_names(model, example)

    def original(inputs: Inputs) -> Outputs:
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in inputs.items()})
        tensors = [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
        return {str(value.name): t.numpy() for value, t in zip(model.graph.outputs, tensors, strict=True)}

    return model, original


def _exported(module: Any, example: Inputs, axes: DynamicAxes) -> ir.Model:
    import torch

    # A dynamic axis of one would be taken for a constant.
    two_rows = {name: np.concatenate([value, value])[:2] for name, value in example.items()}
    ones = {name: tuple(a for a in dynamic if example[name].shape[a] == 1) for name, dynamic in axes.items()}
    rows = {name: torch.from_numpy(value.copy()) for name, value in doubled(two_rows, ones).items()}
    dynamic = {name: dict.fromkeys((0, *axes.get(name, ())), torch.export.Dim.DYNAMIC) for name in rows}
    try:
        logging.disable(logging.ERROR)  # torch's and onnxscript's; what matters is raised
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")  # the exporter's own deprecations; nothing that a user can act on
            program = torch.onnx.export(
                module,
                kwargs=rows,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
            )
    except Exception as error:
        listed = {name: sorted(found) for name, found in dynamic.items()}
        raise InputError(
            f"torch.onnx.export cannot capture the model with the inputs and dynamic axes {listed}: "
            f"{first_line(error)}; the inputs of calibration must be named like the parameters of forward, and forward "
            "must bear other sizes on those axes"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    if program is None:
        raise InputError("torch.onnx.export returned no program")
    model: ir.Model = program.model
    return model


def _check_parameters(module: Any, example: Inputs) -> None:
    try:
        inspect.signature(module.forward).bind(**example)
    except TypeError as error:
        raise InputError(
            f"the model's forward cannot be called with the inputs {sorted(example)}: {error}; the inputs of "
            "calibration must be named like its parameters"
        ) from None


def _check_names(model: ir.Model, example: Inputs) -> None:
    """Names and types of the graph's inputs are those that calibration yields."""
    wanted = {str(value.name): value.dtype for value in model.graph.inputs if not value.is_initializer()}
    if sorted(wanted) != sorted(example):
        raise InputError(f"the model's inputs are {sorted(wanted)}, but calibration yields {sorted(example)}")
    for name, dtype in wanted.items():
        given = ir.DataType.from_numpy(example[name].dtype)
        if dtype is not None and given != dtype:
            raise InputError(
                f"the model's input {name!r} is {dtype.name}, but calibration yields {given.name}; convert it"
            )


def _free_axes(model: ir.Model, axes: DynamicAxes) -> None:
    """Name the batch and the dynamic axes of inputs; `_check_equal` tells if those that a file fixed can vary."""
    for value in model.graph.inputs:
        if value.shape is None or len(value.shape) == 0:
            raise InputError(f"the model's input {value.name!r} has no batch axis")
        dynamic = axes.get(str(value.name), ())
        if any(axis >= len(value.shape) for axis in dynamic):
            raise InputError(
                f"the model's input {value.name!r} has {len(value.shape)} axes; dynamic_axes names {list(dynamic)}"
            )
        rest = enumerate(list(value.shape)[1:], 1)
        named = [f"{value.name}_{a}" if a in dynamic and isinstance(size, int) else size for a, size in rest]
        value.shape = ir.Shape(("batch", *named))
    for output in model.graph.outputs:
        if output.shape is not None and len(output.shape):
            rest_of = [None] * (len(output.shape) - 1) if any(axes.values()) else list(output.shape)[1:]
            output.shape = ir.Shape(("batch", *rest_of))


def _other_size(original: Run, example: Inputs, axes: DynamicAxes) -> Inputs:
    """`example` with other sizes on the dynamic axes: twice as long, else half, as the original can bear it."""
    reasons = []
    for other in (doubled(example, axes), halved(example, axes)):
        try:
            original(other)
        except Exception as error:
            shapes = {name: value.shape for name, value in other.items()}
            reasons.append(f"on {shapes}: {first_line(error)}")
        else:
            return other
    raise InputError(
        f"the model cannot run other sizes on its dynamic axes, {'; '.join(reasons)}; leave out of dynamic_axes what "
        "the model fixes"
    )


def _check_equal(original: Run, captured: Run, example: Inputs) -> None:
    for rows in sorted({1, len(next(iter(example.values())))}):
        part = {name: value[:rows] for name, value in example.items()}
        try:
            want, have = original(part), captured(part)
        except Exception as error:
            remedy = "; its batch axis must be dynamic (export it so)" if rows > 1 else ""
            raise InputError(f"the model cannot run {rows} rows: {first_line(error)}{remedy}") from error
        for name, value in want.items():
            if value.shape[:1] != (rows,):
                raise InputError(
                    f"the model's output {name!r} has no batch axis: its shape is {value.shape} for {rows} rows"
                )
            error_found = relative_error(value, have[name])
            if not error_found <= TOLERANCE:
                raise InputError(
                    f"the captured graph's output {name!r} differs from the original's by {error_found:.2e} of its "
                    f"largest value for {rows} rows (at most {TOLERANCE:.0e} is accepted); is the model deterministic?"
                )


def relative_error(want: Array, have: Array) -> float:
    """max |want − have| ÷ max |want|; NaN where a value is not finite, infinite where the shapes differ."""
    if want.shape != have.shape:
        return float("inf")
    largest = float(np.abs(want).max(initial=0.0))
    difference = float(np.abs(want.astype(np.float64) - have).max(initial=0.0))
    return difference / largest if largest else difference
