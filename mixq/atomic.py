"""Files that are whole at every moment: written beside the old ones, flushed to the disk, then put in their place."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mixq.errors import InputError

_FREE_SPACE = "free some space there, or choose another folder"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another folder",
}


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data`. Raises InputError where that fails; the old file is then as it was."""
    path = Path(path)
    write_together(path.parent, {path.name: data})


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_together(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Replace several files of `folder` (name → content), which is made where it is missing.

    Nothing is replaced before all of them lie on the disk, so a full disk leaves all the old ones; and who reads under
    `locked` sees all old or all new. Only a process that is killed between two renames leaves a mixture. The files
    are replaced in the order given: let the last one hold what shows that the others belong to it.
    Raises InputError, with the path and what to do, where the folder cannot be written.
    """
    folder = Path(folder)
    make_folder(folder)
    # The lock is what makes one temporary name a file enough: whatever lies there was left by a killed process.
    with locked(folder, exclusive=True):
        temporary = {name: folder / f".{name}.tmp" for name in files}
        try:
            for name, data in files.items():
                with _explained(folder / name):
                    _write_new(temporary[name], data)
            for name, path in temporary.items():
                with _explained(folder / name):
                    os.replace(path, folder / name)
        finally:
            for path in temporary.values():
                with suppress(OSError):
                    path.unlink()
        _flush_names(folder)


def check_writable(folder: str | Path) -> None:
    """Prove that `folder` can be made and written, before hours of work rely on it; leave nothing behind.

    Raises InputError, with the path and what to do, where it cannot.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        proof = folder / ".writable"
        write_bytes(proof, b"")
        proof.unlink(missing_ok=True)
    finally:
        for path in made:
            with suppress(OSError, ValueError):
                path.rmdir()


def make_folder(folder: str | Path) -> None:
    """Make `folder` and its parents. Raises InputError where that fails."""
    folder = Path(folder)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: str | Path, exclusive: bool = False) -> Iterator[None]:
    """Hold the lock of `folder` that writers hold: with others that read, or alone (`exclusive`).

    It belongs to the process and ends with it. Some network file systems have none; then this does nothing, and
    two processes that write the same files at the same time are not kept apart.
    """
    descriptor = None
    # A folder that is missing or may not be listed: reading or writing will say it better.
    with suppress(OSError, ValueError):
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _write_new(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    # 0o666 lets the user's umask decide, as for any file; the functions of `tempfile` would make it private.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    """Let the renames survive a power cut, where the file system can flush a folder; the files are in place anyway."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"cannot write {path}: {error}; choose a name that a file can have") from error
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose a folder that you may write to")
        raise InputError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error
