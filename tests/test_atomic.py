"""A file is old or new, never half; a folder that cannot be written is an InputError that says what to do."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mixq import atomic
from mixq.errors import InputError

NAMES = ("model", "config", "certificate")

KILLED = """
import os, pathlib, signal, sys
from mixq import atomic

calls, rename = 0, os.replace

def replace(source, target):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.replace = replace
atomic.write_together(pathlib.Path(sys.argv[1]), dict.fromkeys(("model", "config", "certificate"), b"new"))
"""

LIMITED = """
import pathlib, resource, sys
from mixq import atomic
from mixq.errors import InputError

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic.write_bytes(sys.argv[1], bytes(100_000))
except InputError as error:
    print(error)
"""

WRITER = """
import sys
from mixq import atomic

for i in range(60):
    atomic.write_together(sys.argv[1], dict.fromkeys(("model", "config", "certificate"), str(i).encode()))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    atomic.write_together(tmp_path, dict.fromkeys(NAMES, b"old"))
    return tmp_path


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "file.txt"
    atomic.write_text(path, "first")
    atomic.write_text(path, "sécond")
    assert path.read_bytes() == "sécond".encode()
    assert contents(path.parent).keys() == {"file.txt"}


def test_takes_a_name_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atomic.write_bytes("file", b"data")
    assert contents(tmp_path) == {"file": b"data"}


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic.write_bytes(tmp_path / "file", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("full_at", [1, 2, 3])
def test_a_full_disk_leaves_all_old_files(folder: Path, full_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=rf"cannot write .*{NAMES[full_at - 1]}: No space left.*; free some space"):
        atomic.write_together(folder, dict.fromkeys(NAMES, b"new"))
    assert contents(folder) == dict.fromkeys(NAMES, b"old")


def test_a_limit_on_file_size_leaves_the_old_file(folder: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(folder / "model")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "File too large; raise the limit" in said
    assert contents(folder) == dict.fromkeys(NAMES, b"old")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_failed_rename_leaves_no_temporary_file(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="Input/output error"):
        atomic.write_together(folder, dict.fromkeys(NAMES, b"new"))
    assert contents(folder) == dict.fromkeys(NAMES[: at - 1], b"new") | dict.fromkeys(NAMES[at - 1 :], b"old")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_killed_writer_never_leaves_a_half_file_and_the_next_one_repairs(folder: Path, at: int) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(at)], check=False)
    assert killed.returncode < 0
    found = {name: data for name, data in contents(folder).items() if name in NAMES}
    assert found == dict.fromkeys(NAMES[: at - 1], b"new") | dict.fromkeys(NAMES[at - 1 :], b"old")
    atomic.write_together(folder, dict.fromkeys(NAMES, b"newer"))
    assert contents(folder) == dict.fromkeys(NAMES, b"newer")


def test_who_reads_under_the_lock_sees_no_mixture(folder: Path) -> None:
    seen = set()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)]) as writer:
        while writer.poll() is None:
            with atomic.locked(folder):
                found = {(folder / name).read_bytes() for name in NAMES}
            assert len(found) == 1
            seen |= found
    assert writer.returncode == 0
    assert len(seen) > 1, "the reader came too late to see anything"


@pytest.mark.parametrize("place", ["/proc/no/such", "a file"])
def test_a_folder_that_cannot_be_made_is_explained(place: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    folder = tmp_path / place / "below"  # an absolute place stands for itself
    with pytest.raises(InputError, match=rf"cannot write {folder}: .*; choose a folder"):
        atomic.check_writable(folder)
    with pytest.raises(InputError, match="; choose a folder that you may write to"):
        atomic.write_text(folder / "file", "text")


def test_a_read_only_file_system_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="Read-only file system; choose a folder that you may write to"):
        atomic.check_writable(tmp_path)


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    atomic.check_writable(tmp_path / "new" / "folder")
    assert contents(tmp_path) == {}


def test_check_writable_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"1")
    atomic.check_writable(tmp_path)
    assert contents(tmp_path) == {"kept": b"1"}
