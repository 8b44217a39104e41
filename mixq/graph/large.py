"""Models above protobuf's limit: one value in memory as any other model, and two files on the disk.

In memory, such a model is MAGIC, the length of the ONNX message, the message, and the data of its weights, to which the
message refers by offset. On the disk, message and data lie side by side, as ONNX's external data do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from mixq.errors import InputError

ONNX_LIMIT = 2**31 - 1  # protobuf's, for one message
DATA_FILE = "best.onnx.data"
MAGIC = b"\0mixq large onnx\0"  # no ONNX message begins so
INLINE = 1024  # bytes: smaller constants (shapes, axes) stay in the message, where runtimes look for them
ALIGNED = 64  # bytes


def weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def pack(model: ir.Model) -> bytes:
    """A model of any size as one value."""
    copy, data = model.clone(), bytearray()
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < INLINE:
            continue
        data += bytes(-len(data) % ALIGNED)
        offset = len(data)
        data += tensor.tobytes()
        value.const_value = ir.ExternalTensor(
            DATA_FILE, offset, len(data) - offset, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    return join(ir.to_proto(copy).SerializeToString(deterministic=True), data)


def unpack(model: bytes) -> ir.Model:
    """The inverse of `pack`, with the weights in memory; a plain ONNX message is taken too."""
    message, data = split(model)
    found = ir.from_proto(onnx.load_model_from_string(message))
    for name, value in found.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _read(name, value.const_value, data or b"")
    return found


def _read(name: str, tensor: ir.ExternalTensor, data: bytes | memoryview) -> ir.TensorProtocol:
    dtype, shape, offset = tensor.dtype.numpy(), tensor.shape.numpy(), tensor.offset or 0
    count = int(np.prod(shape))
    if tensor.location != DATA_FILE or offset < 0 or offset + count * dtype.itemsize > len(data):
        raise InputError(f"the weight {name!r} lies at {tensor.location} from byte {offset}, beyond {DATA_FILE}")
    return ir.Tensor(np.frombuffer(data, dtype, count, offset).reshape(shape), dtype=tensor.dtype, name=name)


def join(message: bytes, data: bytes | bytearray | memoryview | None) -> bytes:
    """One value of an ONNX message and the data that it refers to; the message alone where there are none."""
    return message if data is None else b"".join((MAGIC, len(message).to_bytes(8, "little"), message, data))


def split(model: bytes) -> tuple[bytes, memoryview | None]:
    """The inverse of `join`; the data are not copied."""
    if not model.startswith(MAGIC):
        return model, None
    start = len(MAGIC) + 8
    end = start + int.from_bytes(model[len(MAGIC) : start], "little")
    return model[start:end], memoryview(model)[end:]


def write(model: bytes, folder: Path) -> Path:
    """The files of a model; the path of that to be opened."""
    message, data = split(model)
    path = folder / "model.onnx"
    path.write_bytes(message)
    if data is not None:
        (folder / DATA_FILE).write_bytes(data)
    return path
