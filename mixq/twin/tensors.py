"""ONNX tensors and element types in torch.

FLOAT16 and BFLOAT16 are kept in float32: torch's half precision convolution is up to 60 times slower than its
float32 one on a CPU, and gradients want float32 anyway. The rounding to those types happens in Cast (ops/cast.py).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from mixq.errors import InputError

HALF = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}

_STORAGE = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float32,
    ir.DataType.BFLOAT16: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
}


def storage(dtype: int) -> torch.dtype:
    """The torch type that holds values of the ONNX element type `dtype`.

    Raises InputError for a type that torch does not compute with (strings, 8-bit floats, 4-bit integers).
    """
    known = _STORAGE.get(ir.DataType(dtype))
    if known is None:
        names = ", ".join(sorted(kind.name for kind in _STORAGE))
        raise InputError(f"element type {ir.DataType(dtype).name} cannot be computed in torch; use one of {names}")
    return known


def from_ir(tensor: ir.TensorProtocol) -> torch.Tensor:
    """A copy of `tensor`, of its shape, in the storage type. Raises InputError as `storage` does."""
    dtype = storage(tensor.dtype)
    array = tensor.numpy()
    if tensor.dtype in HALF:
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array)).to(dtype)
