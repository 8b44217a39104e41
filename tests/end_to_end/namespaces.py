"""Namespaces of the kernel's for a test's own mounts and networks: they end with it, however it ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

MOUNTS = ("--mount",)
HOST = ("--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc")  # what another host has of its own


@dataclass(frozen=True)
class Namespace:
    """pid: of a process that lives in it."""

    pid: int

    @property
    def enter(self) -> list[str]:
        """What a command that is to run in it begins with."""
        return ["nsenter", "--target", str(self.pid), "--all"]

    def run(self, *command: str | Path) -> None:
        subprocess.run([*self.enter, *map(str, command)], check=True, capture_output=True)

    def seen(self, path: Path) -> Path:
        """A path of its own as others may read it."""
        return Path(f"/proc/{self.pid}/root{path}")


@contextmanager
def namespace(*kinds: str) -> Iterator[Namespace]:
    """A new one, as options of `unshare`; the test is skipped, with the reason, where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("only root may make namespaces of mounts and networks")
    command = ["unshare", *kinds, *(("--kill-child",) if "--fork" in kinds else ())]
    with subprocess.Popen(
        [*command, "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stderr is not None
            if not holder.stdout.readline():
                pytest.skip(f"namespaces cannot be made here: {holder.stderr.read().strip()}")
            yield Namespace(_inner(holder.pid) if "--fork" in kinds else holder.pid)
        finally:
            holder.kill()


def _inner(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(child)


@contextmanager
def mounted(folder: Path, options: Sequence[str]) -> Iterator[Namespace]:
    """A file system in memory at `folder`, which only the namespace's own processes see."""
    with namespace(*MOUNTS) as found:
        try:
            found.run("mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder)
        except subprocess.CalledProcessError as refused:
            pytest.skip(f"no file system can be mounted here: {refused.stderr!r}")
        yield found
