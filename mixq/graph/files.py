"""An .onnx file that a user brings → the graph, valid by the ONNX checker, with its weights."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from mixq.errors import InputError, first_line
from mixq.graph.large import ONNX_LIMIT


def read_onnx(path: Path) -> ir.Model:
    """The graph, its weights in memory. Raises InputError for a file that is missing, damaged or invalid.

    External data are read from the file's own folder only, be they named by a path or a link that leads out of it.
    """
    if not os.path.isfile(path):  # of a name that no file can have, Path.is_file raises
        raise InputError(
            f"there is no model file {path}; model() returns a torch.nn.Module or the path of an .onnx file"
        )
    if path.stat().st_size > ONNX_LIMIT:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes, more than the 2 GiB that one ONNX message may have; save it with "
            "its weights beside it, e.g. onnx.save(model, path, save_as_external_data=True)"
        )
    path = path.resolve()  # of a path without a folder, weights would be read from anywhere
    try:
        onnx.checker.check_model(str(path))  # what it refuses can crash a runtime instead of raising
        model = ir.load(path)
        ir.external_data.load_to_model(model)
    except Exception as error:  # the checker's, protobuf's, onnx_ir's and the file system's: no common base
        raise InputError(
            f"{path} cannot be read as ONNX: {first_line(error)[:300]}; is it whole, with its data files beside it? "
            "export it again"
        ) from error
    return model
