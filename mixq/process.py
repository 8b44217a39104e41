"""ProcessId: a process by what no other one will ever have, so that it can be told whether it is gone."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """host: its name, for people; boot: of the kernel, and the numbering that pid belongs to; start: since boot."""

    host: str
    boot: str
    pid: int
    start: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """That of a process on this host."""
        return cls(socket.gethostname(), _boot(), pid, _start(pid) or "")

    @classmethod
    def own(cls) -> ProcessId:
        return cls.of(os.getpid())

    @property
    def is_local(self) -> bool:
        """Whether it is, or was, one of this host's, so that it can be looked for."""
        return bool(self.boot) and self.boot == _boot()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended: one of another host's never is."""
        return self.is_local and _start(self.pid) != self.start

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ProcessId:
        return cls(**json.loads(text))


def _boot() -> str:
    """Of this kernel and this numbering of processes (a container has its own); "" where that is not known."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start(pid: int) -> str | None:
    """When it started, in clock ticks since boot; None where it has ended, be it that nobody asked how."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *numbers = text.rpartition(")")[2].split()
    return None if state in "ZX" else numbers[18]
