"""ArrayStore: arrays that took long to make, kept in files, so that a resumed search does not pay for them again."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixq import atomic

Arrays = Mapping[str, npt.NDArray[Any]]

INDEX = "index"
DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class ArrayStore:
    """Files of `folder`, one for each key: a SHA-256, and the NumPy archive that it belongs to.

    `owner` says what else they depend on: mixq, model, calibration data, runtime.
    """

    folder: Path
    owner: str

    def save(self, key: str, index: object, arrays: Arrays) -> None:
        """Keep arrays, and an index of them (JSON). Raises InputError where the folder cannot be written."""
        file = io.BytesIO()
        described = np.frombuffer(json.dumps(index).encode(), np.uint8)
        np.savez_compressed(file, allow_pickle=False, **{**arrays, INDEX: described})
        content = file.getvalue()
        atomic.write_bytes(self._path(key), hashlib.sha256(content).digest() + content)

    def load(self, key: str) -> tuple[Any, dict[str, npt.NDArray[Any]]] | None:
        """The index and the arrays that `save` was given; None where there is no file that `save` wrote."""
        content = self._read(key)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return json.loads(arrays.pop(INDEX).tobytes()), arrays
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):  # a pickle, or no archive of ours: made by another
            return None

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Be the one process that makes what belongs to `key`; others wait, and then find it saved.

        The lock ends with its holder. Where the folder cannot be locked, each process makes its own.
        """
        path = self._path(key).with_suffix(".lock")
        descriptor = None
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = _locked(path)
        try:
            yield
        finally:
            if descriptor is not None:
                path.unlink(missing_ok=True)
                os.close(descriptor)

    def _read(self, key: str) -> bytes | None:
        """The archive in the file, if it is the one that was written."""
        with suppress(OSError):
            content = self._path(key).read_bytes()
            if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]:
                return content[DIGEST:]
        return None

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps([self.owner, key]).encode()).hexdigest()[:16]}.prepared"


def _locked(path: Path) -> int:
    """A descriptor of the locked file, which its last holder takes away: then it is another file, to be locked anew."""
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(path, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
