"""What machine this is: figures without it mean nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import cast

from mixq.errors import InputError

WANTED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")


def affinity() -> set[int]:
    """The numbers of the processors that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores() -> int:
    """Processors that this process may use."""
    return len(affinity())


def share_of_cores(number: int, of: int, least: int) -> set[int]:
    """The processors of process `number` of `of`, `least` at least: disjoint shares where there are enough of them."""
    found = sorted(affinity())
    size = max(least, len(found) // of)
    return {found[(number * size + index) % len(found)] for index in range(min(size, len(found)))}


def check_threads(threads: int) -> None:
    """Raises InputError unless there is a core for each thread."""
    if not 1 <= threads <= cores():
        raise InputError(f"threads must be from 1 to {cores()} (the cores of this machine), got {threads}")


def describe() -> dict[str, object]:
    """CPU model, the instructions that matter, cores, system: written into every result."""
    info = _cpu_info()
    flags = set(info.get("flags", "").split())
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "family_model_stepping": [info.get(key, "") for key in ("cpu family", "model", "stepping")],
        "instructions": [flag for flag in WANTED_FLAGS if flag in flags],
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def processor() -> str:
    """The CPU's name, which virtual machines of several generations may share, with its model and instructions."""
    found = describe()
    generation = " ".join(map(str, cast(list[str], found["family_model_stepping"]))).strip()
    instructions = " ".join(cast(list[str], found["instructions"]))
    return f"{found['cpu']} ({', '.join(part for part in (generation, instructions) if part)})"


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
