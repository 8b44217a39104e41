"""Certificate: what was measured, on what, of which files, and how to open the model to get it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, PlainSerializer, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from mixq.errors import InputError
from mixq.graph import Layer, large
from mixq.task import Inputs
from mixq.validation import explain, few

MODEL, CONFIG, PROBE = "best.onnx", "best.json", "probe.npz"
FILES = (MODEL, CONFIG, PROBE)
DATA = large.DATA_FILE  # the weights of a model above protobuf's limit, beside it
CERTIFICATE = "certificate.json"

_T = TypeVar("_T")
_Table = Annotated[Mapping[str, _T], AfterValidator(MappingProxyType), PlainSerializer(dict)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileMark(_Value):
    """By what a file is known: SHA-256 in hexadecimal digits, and size in bytes."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)

    @classmethod
    def of(cls, data: bytes) -> FileMark:
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class Opening(_Value):
    """How the model is to be opened to get what was measured: the runtime, its own options, threads."""

    runtime: str
    version: str
    options: _Table[str]
    threads: int = Field(ge=1)


class InputMark(_Value):
    """An input of the model; `row_shape` is without the batch axis."""

    name: str
    dtype: str
    row_shape: tuple[int, ...]


class LayerRecord(_Value):
    """One row of the kernel audit: the scheme asked, the precision executed, the runtime's kernel and its time.

    The layer is kept whole: it is what a runtime needs to find the layer again in what it executes, and the lowered
    model no longer shows it.
    """

    layer: Layer
    asked: str
    executed: str
    kernel: str
    time_us: float | None


class Certificate(_Value):
    """What `certificate.json` holds. `measured` is the Evaluation, `extra` whatever the exporter adds."""

    format: Literal[1] = 1
    config_id: str
    files: _Table[FileMark]
    open: Opening
    inputs: tuple[InputMark, ...]
    machine: _Table[JsonValue]
    versions: _Table[str]
    measured: _Table[JsonValue]
    kernels: tuple[LayerRecord, ...]
    extra: _Table[JsonValue] = Field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Certificate:
        """Raises InputError where the file is missing, cut off, or not a whole certificate."""
        try:
            certificate = cls.model_validate_json(_read(path))
        except ValidationError as error:
            reasons = "; ".join(few([sentence for _, sentence in explain(error, cls)]))
            raise InputError(f"{path} is not a whole certificate: {reasons}; export again") from None
        if set(certificate.files) - {DATA} != set(FILES):
            known = ", ".join(FILES)
            raise InputError(f"{path} describes the files {sorted(certificate.files)} instead of {known}; export again")
        return certificate


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path}: {reason}; give a folder that a search or an export wrote") from error


def model_files(model: bytes) -> dict[str, bytes]:
    """The files of a model by name: one, or two above protobuf's limit."""
    message, data = large.split(model)
    return {MODEL: message} if data is None else {DATA: bytes(data), MODEL: message}


def marks(inputs: Inputs) -> tuple[InputMark, ...]:
    """The inputs' names, types and shapes per row."""
    return tuple(
        InputMark(name=name, dtype=str(value.dtype), row_shape=value.shape[1:]) for name, value in inputs.items()
    )


def fields(value: Any) -> dict[str, JsonValue]:
    """A mapping or dataclass as plain JSON values. Raises InputError for what JSON cannot hold."""
    try:
        found: dict[str, JsonValue] = to_jsonable_python(value, fallback=_plain)
    except (TypeError, PydanticSerializationError) as error:
        raise InputError(f"the certificate holds JSON values only: {error}") from error
    return found


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is none")
