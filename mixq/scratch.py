"""Temporary folders, for what runtimes and MLflow only take or give as files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixq.errors import InputError


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Raises InputError where none can be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="mixq-")
    except OSError as error:
        raise InputError(
            f"no temporary folder can be made: {error.strerror or error} ({error.filename or 'TMPDIR'}); set the "
            "environment variable TMPDIR to a folder that you may write to"
        ) from error
    with folder as path:
        yield Path(path)


def check_scratch() -> None:
    """Prove, before hours of work rely on it, that a temporary folder can be made. Raises InputError where not."""
    with scratch_folder():
        pass
